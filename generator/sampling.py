"""Sampling of codes: the draw of a code, and the loop over positions, one small function each.

Every picture has its own random generator, so its codes depend on the weights, its condition, the settings and its
seed. They depend on the batch that it was sampled in, and so on the number of processes, by rounding alone: it decides
the rare draw that lies close to the border of two codes. With ``deterministic`` they do not depend on the batch at all.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

from wvq.errors import ConfigError
from wvq.generator.captured import FixedDecoder, fixed_steps
from wvq.generator.conditioning import Condition
from wvq.generator.decoder import GuidedDecoder
from wvq.generator.filters import FREE, draw
from wvq.generator.fixed_rows import run_in_fixed_rows
from wvq.generator.linear import packed_weights
from wvq.generator.modeling import ImageCodeTransformer
from wvq.generator.sampling_settings import SamplingSettings
from wvq.generator.speculative import WindowedSampler


def uniforms(seeds: list[int], length: int) -> torch.Tensor:
    """Uniform numbers (B, T) in [0, 1), row by row from each picture's own generator."""
    return torch.stack([torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample_codes(
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool = False,
    fixed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw the codes of pictures.

    Args:
        model: in eval mode.
        condition: condition of B pictures.
        seeds: one a picture.
        settings: guidance and filters.
        progress: show a progress bar over the codes.
        fixed: (B, h, w) int64, codes that are given, -1 where they are to be drawn. Each drawn code sees the given
            ones before it, not those after it: rows that are given from the top down are continued downwards.

    Returns:
        (B, h, w) int64, made outside of inference mode, so that they can be trained on.

    Raises:
        ConfigError: ``fixed`` does not fit.
    """
    config = model.config
    shape = (len(seeds), *config.grid)
    codes = torch.full((len(seeds), config.sequence_length), FREE, dtype=torch.int64, device=model.device)
    if fixed is not None:
        check_fixed(fixed, shape, config.num_codes)
        codes.copy_(fixed.flatten(1))

    def fill(numbers: list[int]) -> torch.Tensor:
        part = codes[numbers]
        _fill(part, model, condition.rows(numbers), [seeds[number] for number in numbers], settings, progress)
        return part

    with packed_weights(model, settings.deterministic), torch.inference_mode():
        if settings.fixed_rows is None:
            _fill(codes, model, condition, seeds, settings, progress)
        else:
            codes.copy_(run_in_fixed_rows(seeds, settings.fixed_rows, fill))
    return codes.view(shape)


def check_fixed(fixed: torch.Tensor, shape: tuple[int, ...], num_codes: int) -> None:
    """Check codes that are given.

    Args:
        fixed: the codes, -1 where they are to be drawn.
        shape: what they must have: B, h, w.
        num_codes: codes K of the model.

    Raises:
        ConfigError: another shape or kind, or a code out of range.
    """
    if tuple(fixed.shape) != shape or fixed.is_floating_point():
        raise ConfigError(f"fixed codes must be integers {shape}, got {fixed.dtype} {tuple(fixed.shape)}")
    if not bool(((fixed >= FREE) & (fixed < num_codes)).all()):
        raise ConfigError(f"fixed codes must be in [0, {num_codes}), or {FREE} where they are drawn")


def _fill(
    codes: torch.Tensor,
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool,
) -> None:
    """Draw the codes (B, T) that are FREE, in place; arguments as in :func:`sample_codes`."""
    length = codes.shape[1]
    open_places = (codes == FREE).any(0).nonzero().flatten().tolist()
    if not open_places:
        return
    # A pass over all given codes rounds differently from one pass a code, and the other pictures' masks may differ.
    start = 0 if (settings.fixed_rows or 0) > 1 else open_places[0]
    places = range(start, open_places[-1] + 1)
    with fixed_steps(model, codes, condition, seeds, settings, places) as batch:
        if batch is None:
            decoder = GuidedDecoder(model, condition, len(seeds), settings.scales(length), start)
            _draw_codes(codes, decoder, seeds, settings, places, progress)
        else:
            _draw_codes(batch.codes, batch.decoder, batch.seeds, settings, places, progress)
            codes.copy_(batch.codes[: len(codes)])


def _draw_codes(
    codes: torch.Tensor,
    decoder: GuidedDecoder,
    seeds: list[int],
    settings: SamplingSettings,
    places: range,
    progress: bool,
) -> None:
    """Draw the codes (B, T) that are FREE at the places, in place."""
    if settings.window:
        WindowedSampler(codes, decoder, seeds, settings).fill(places.start, places.stop, progress)
        return
    any_given = bool((codes != FREE).any())
    uniform = uniforms(seeds, codes.shape[1]).to(codes.device)
    if isinstance(decoder, FixedDecoder):
        decoder.state.uniform.copy_(uniform)
    for position in tqdm(places, unit="code", disable=not progress, leave=False):
        if isinstance(decoder, FixedDecoder) and decoder.draw_next(position):
            continue
        drawn = draw(decoder.logits(codes, position, position + 1)[:, 0], uniform[:, position], settings)
        if any_given:
            drawn = torch.where(codes[:, position] == FREE, drawn, codes[:, position])
        codes[:, position] = drawn
