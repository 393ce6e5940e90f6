"""Sampling of product codes: position by position, and at each position codebook by codebook."""

from __future__ import annotations

import torch
from tqdm import tqdm

from wvq.errors import ConfigError
from wvq.generator.base.cache import KeyValueCache
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.draws import uniforms
from wvq.generator.base.filters import FREE, draw
from wvq.generator.base.guided import GuidedBody
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.depth.configuration import DepthTransformerConfig
from wvq.generator.depth.modeling import DepthTransformer


def check_settings(config: DepthTransformerConfig, settings: SamplingSettings) -> None:
    """Raise ConfigError where the generator cannot follow the settings."""
    if settings.window:
        raise ConfigError(
            f"window is for generators of one code a position; this one draws {config.num_groups} at each: set it to 0"
        )
    if settings.passes:
        raise ConfigError(
            f"passes is for generators of one code a position; this one draws {config.num_groups} at each: set it to 0"
        )


def fill(
    codes: torch.Tensor,
    model: DepthTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool,
) -> None:
    """Draw the codes (B, T G) that are FREE, in place; arguments as in :func:`wvq.generator.sampling.sample_codes`.

    Guidance follows its schedule over the positions: all codes of one have the same scale.
    """
    config = model.config
    positions = codes.view(len(codes), config.num_positions, config.num_groups)
    drawn_at = (positions == FREE).any(2).any(0).nonzero().flatten().tolist()
    if not drawn_at:
        return
    # A pass over all given codes rounds differently from one pass a position, and the other pictures' may differ.
    start = 0 if (settings.fixed_rows or 0) > 1 else drawn_at[0]
    body = GuidedBody(model, condition, len(seeds), settings.scales(config.num_positions), start)
    cache = None if model.depth is None else model.depth.new_cache(body.prefix.tokens)
    uniform = uniforms(seeds, codes.shape[1]).to(codes.device).view_as(positions)
    for position in tqdm(range(start, drawn_at[-1] + 1), unit="position", disable=not progress, leave=False):
        _draw_position(positions, position, body, cache, uniform[:, position], settings)


def _draw_position(
    codes: torch.Tensor,
    position: int,
    body: GuidedBody[DepthTransformer],
    cache: KeyValueCache | None,
    uniform: torch.Tensor,
    settings: SamplingSettings,
) -> None:
    """Draw the codes (B, T, G) of a position that are FREE, in place, by the numbers (B, G)."""
    model, given = body.model, codes[:, position]
    hidden = body.hidden(codes, position, position + 1)
    x, rows = hidden, len(hidden)
    cache = None if cache is None else cache.part(0, rows)  # empty, whatever the position before has left in it
    for group in range(model.config.num_groups):
        state = hidden if model.depth is None else model.depth(x, cache)
        # No name keeps logits that the draw has no more use for: of many codes they are most of the memory.
        drawn = draw(body.guided(model.logits(state, group), position, position + 1)[:, 0], uniform[:, group], settings)
        given[:, group] = torch.where(given[:, group] == FREE, drawn, given[:, group])
        if model.depth is not None and group + 1 < model.config.num_groups:
            chosen = given[:, group : group + 1].repeat(rows // len(given), 1)
            x = model.embed_each(chosen, group)
