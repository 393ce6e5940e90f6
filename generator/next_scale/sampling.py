"""Sampling of multi-scale codes: a pass a scale, over a cache that grows by the tokens of each.

Every picture has its own random generator and every code its own number of it, so a picture's codes depend on weights,
condition, settings and seed, and on the batch by rounding alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tqdm import tqdm

from wvq.errors import ConfigError
from wvq.generator.base.cache import KeyValueCache, cache_shape
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.draws import uniforms
from wvq.generator.base.filters import FREE, draw
from wvq.generator.base.guidance import guide, scale_guidance
from wvq.generator.base.previews import Preview
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.generator.next_scale.modeling import NextScaleTransformer, input_of, scale_mask


def check_settings(config: NextScaleTransformerConfig, settings: SamplingSettings) -> None:
    """Raise ConfigError where the generator cannot follow the settings."""
    if settings.window:
        raise ConfigError("window is for generators of one code a pass; this one draws a scale a pass: set it to 0")
    if settings.passes:
        raise ConfigError("passes is for generators of grid codes; this one draws a scale a pass: set it to 0")


def fill(
    codes: torch.Tensor,
    model: NextScaleTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool,
    callback: Preview | None = None,
) -> None:
    """Draw the codes (B, T) that are FREE, in place; arguments as in :func:`wvq.generator.sampling.sample_codes`.

    Guidance follows its schedule over the scales, the last at its end.
    """
    config = model.config
    count, shapes = len(seeds), config.scale_shapes
    guidance = scale_guidance(settings, len(shapes))
    guided = any(scale != 1 for scale in guidance)
    rows = 2 * count if guided else count
    given = condition.cat(condition.null()) if guided else condition
    prefix, vector, valid, bias = model.embed_condition(given, rows)
    del given  # features of texts
    modulations = None if vector is None else model.modulations(vector)
    # A prefix is read in order, together with the first scale; later passes see all that was read but padding.
    mask = scale_mask(config, valid, codes.device, 1) if config.prefix_length else None
    seen = None if valid is None else F.pad(valid, (0, config.sequence_length), value=True)[:, None, None, :]
    first = model.first_tokens(vector, rows)
    x = torch.cat((prefix, first if bias is None else first + bias), 1)
    cache = KeyValueCache(x.new_empty(cache_shape(config, rows)))
    uniform = uniforms(seeds, config.sequence_length).to(codes.device)
    maps: torch.Tensor | float = 0.0
    start = 0
    for index, shape in enumerate(tqdm(shapes, unit="scale", disable=not progress, leave=False)):
        end = start + math.prod(shape)
        hidden = model.run(x, vector, mask, cache, modulations)[:, start - end :]
        # No name holds the logits, the largest tensor here, so that the draw may free them.
        drawn = draw(
            _guided(model.logits(hidden).float(), guidance[index] if guided else None),
            uniform[:, start:end].flatten(),
            settings,
        )
        part = codes[:, start:end]
        codes[:, start:end] = torch.where(part == FREE, drawn.view_as(part), part)
        if callback is not None:
            callback(index, codes[:, :end].clone())
        if index + 1 < len(shapes):
            maps = model.add_scale(maps, codes[:, start:end], index)
            inputs = input_of(maps, shapes[index + 1])
            x = model.embed(torch.cat((inputs, inputs)) if guided else inputs, index + 1, index + 2)
            x = x if bias is None else x + bias
            mask = None if seen is None else seen[..., : cache.length + x.shape[1]]
        start = end


def _guided(logits: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Logits (B n, K) of the pictures' codes from those of the model (B, n, K), (2 B, n, K) with a guidance scale."""
    return (logits if scale is None else guide(logits, scale)).flatten(0, 1)
