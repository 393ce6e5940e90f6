"""Sampling of codes of any layout: given codes, groups of fixed rows, and the way of drawing that the layout has.

Every picture has its own random generator, so its codes depend on the weights, its condition, the settings and its
seed. They depend on the batch that it was sampled in, and so on the number of processes, by rounding alone: it decides
the rare draw that lies close to the border of two codes. With ``deterministic`` they do not depend on the batch at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from wvq.data.layout import codes_shape, unflatten_codes
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.draws import check_fixed
from wvq.generator.base.filters import FREE
from wvq.generator.base.fixed_rows import run_in_fixed_rows
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.linear import packed_weights
from wvq.generator.base.previews import Preview
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.depth import sampling as depth
from wvq.generator.depth.modeling import DepthTransformer
from wvq.generator.next_code import sampling as next_code
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.next_scale import sampling as next_scale
from wvq.generator.next_scale.modeling import NextScaleTransformer


@dataclass(frozen=True)
class _Sampler:
    """How one kind of generator is sampled.

    Attributes:
        fill: draws the codes (B, T) that are FREE, in place; arguments as of :func:`sample_codes`.
        check: raises ConfigError where the generator cannot follow the settings.
        previews: whether a callback is called.
    """

    fill: Callable[..., None]
    check: Callable[[Any, SamplingSettings], None]
    previews: bool = False


_SAMPLERS: dict[type[CodeGenerator], _Sampler] = {
    ImageCodeTransformer: _Sampler(next_code.fill, next_code.check_settings),
    DepthTransformer: _Sampler(depth.fill, depth.check_settings),
    NextScaleTransformer: _Sampler(next_scale.fill, next_scale.check_settings, previews=True),
}


def sample_codes(
    model: CodeGenerator,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool = False,
    fixed: torch.Tensor | None = None,
    callback: Preview | None = None,
) -> torch.Tensor:
    """Draw the codes of pictures.

    Args:
        model: in eval mode.
        condition: condition of B pictures.
        seeds: one a picture.
        settings: guidance and filters.
        progress: show a progress bar over the codes, the passes or the scales.
        fixed: (B, ...) int64 in the shape of the layout, codes that are given, -1 where they are to be drawn. A drawn
            code sees the given ones that come before it: row by row, those above and to the left; with ``passes``, all;
            scale by scale, those of all coarser scales.
        callback: see :data:`wvq.generator.base.previews.Preview`; of generators that draw scale by scale.

    Returns:
        (B, ...) int64 in the shape of the layout, made outside of inference mode, so that they can be trained on.

    Raises:
        ConfigError: ``fixed`` does not fit, or the generator cannot follow the settings.
    """
    config, sampler = model.config, _SAMPLERS[type(model)]
    check_sampling(config, settings, callback is not None)
    codes = torch.full((len(seeds), config.sequence_length), FREE, dtype=torch.int64, device=model.device)
    if fixed is not None:
        check_fixed(fixed, (len(seeds), *codes_shape(config.code_layout)), config.num_codes)
        codes.copy_(fixed.flatten(1))

    def fill(numbers: list[int]) -> torch.Tensor:
        part = codes[numbers]
        sampler.fill(part, model, condition.rows(numbers), [seeds[number] for number in numbers], settings, progress)
        return part

    with packed_weights(model, settings.deterministic), torch.inference_mode():
        if settings.fixed_rows is not None:
            codes.copy_(run_in_fixed_rows(seeds, settings.fixed_rows, fill))
        elif callback is not None:
            sampler.fill(codes, model, condition, seeds, settings, progress, callback)
        else:
            sampler.fill(codes, model, condition, seeds, settings, progress)
    return unflatten_codes(codes, config.code_layout)


def check_sampling(config: GeneratorConfig, settings: SamplingSettings, previews: bool = False) -> None:
    """Check that a generator can follow sampling settings.

    Args:
        config: of the generator.
        settings: the settings.
        previews: whether pictures are to be shown while they are drawn.

    Raises:
        ConfigError: a setting that this kind of generator does not have, or a value that does not fit its codes.
    """
    sampler = next(sampler for kind, sampler in _SAMPLERS.items() if kind.config_class is type(config))
    sampler.check(config, settings)
    if previews and not sampler.previews:
        raise ConfigError("previews need a generator that draws scale by scale; this one draws position by position")
    if previews and settings.deterministic:
        raise ConfigError("previews show a batch while it is drawn, and deterministic draws groups of it; choose one")
