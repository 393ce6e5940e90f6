"""Sampling of grid codes: which way the settings ask for, and the one of a code a pass, row by row."""

from __future__ import annotations

import torch
from tqdm import tqdm

from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.draws import uniforms
from wvq.generator.base.filters import FREE, draw
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code import any_order
from wvq.generator.next_code.captured import FixedDecoder, fixed_steps
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.decoder import GuidedDecoder
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.next_code.speculative import WindowedSampler


def check_settings(config: ImageCodeTransformerConfig, settings: SamplingSettings) -> None:
    """Raise ConfigError where the generator cannot follow the settings."""
    if not settings.passes:
        return
    if not config.target_positions:
        raise ConfigError("passes needs a generator that was trained with objective.random_order; set it to 0")
    if config.any_order is False:
        raise ConfigError(
            "passes needs a generator that was trained in random order to the end (objective.order_anneal: null), and "
            "this one reads row by row; set it to 0"
        )
    if settings.passes > config.sequence_length:
        raise ConfigError(
            f"passes is {settings.passes}, above the number of codes, {config.sequence_length}; 0 draws row by row"
        )
    if settings.window:
        raise ConfigError("passes draws codes in any order, and window row by row: set one of them to 0")


def fill(
    codes: torch.Tensor,
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool,
) -> None:
    """Draw the codes (B, T) that are FREE, in place; arguments as in :func:`wvq.generator.sampling.sample_codes`."""
    if settings.passes:
        any_order.fill(codes, model, condition, seeds, settings, progress)
        return
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
