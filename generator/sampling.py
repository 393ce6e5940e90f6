"""Sampling of codes: guidance, filters and the decode loop, one small function each.

Every picture has a random generator of its own, so that its codes depend on the weights, its condition, the settings
and its seed alone: not on the batch that it was sampled in, nor on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tqdm import tqdm

from wvq.errors import ConfigError
from wvq.generator.conditioning import Condition
from wvq.generator.modeling import ImageCodeTransformer, KeyValueCache
from wvq.pretrained import is_integer, is_number


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn.

    Args:
        guidance_scale: s of u + s (c - u), c and u the logits with and without the condition; 1 is off. (Papers that
            write c + w (c - u) have w = s - 1.)
        temperature: divides the guided logits; 0 takes the likeliest code each time.
        top_k: keep the k likeliest codes; 0 keeps all.
        top_p: keep the likeliest codes up to this share of probability, in (0, 1].

    Raises:
        ConfigError: a value is out of range.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not is_number(self.guidance_scale):
            raise ConfigError(f"guidance_scale must be at least 0 (1 is off), got {self.guidance_scale!r}")
        if not is_number(self.temperature):
            raise ConfigError(f"temperature must be at least 0 (0 takes the likeliest code), got {self.temperature!r}")
        if not is_integer(self.top_k, 0):
            raise ConfigError(f"top_k must be an integer of at least 0 (0 keeps all codes), got {self.top_k!r}")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigError(f"top_p must be in (0, 1] (1 keeps all codes), got {self.top_p!r}")


def guide(logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Guided logits (B, K) of a batch whose first half (2 B, K) has the condition and whose second has not."""
    conditional, unconditional = logits.chunk(2)
    return torch.lerp(unconditional, conditional, scale)


def filter_logits(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Logits (B, K) with the codes outside of top-k, then of top-p, at minus infinity; never in place."""
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # the likeliest code always stays
        removed = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(removed, -torch.inf)
    return logits


def draw(logits: torch.Tensor, uniform: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Codes (B,) drawn from logits (B, K) by uniform numbers (B,) in [0, 1): temperature, top-k, top-p, inverse CDF."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = filter_logits(logits.float() / settings.temperature, settings.top_k, settings.top_p)
    cumulative = logits.softmax(-1).cumsum(-1)
    # 1 - u lies in (0, 1]: the first code that reaches it has a probability above 0, whatever was rounded.
    target = (1 - uniform[:, None]) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target).squeeze(1)


def uniforms(seeds: list[int], length: int) -> torch.Tensor:
    """Uniform numbers (B, T) in [0, 1), row by row from each picture's own generator."""
    return torch.stack([torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample_codes(
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool = False,
) -> torch.Tensor:
    """Draw the codes of pictures.

    Args:
        model: in eval mode.
        condition: of B pictures.
        seeds: one a picture.
        settings: guidance and filters.
        progress: show a progress bar over the codes.

    Returns:
        (B, h, w) int64, made outside of inference mode, so that they can be trained on.
    """
    codes = torch.empty(len(seeds), model.config.sequence_length, dtype=torch.int64, device=model.device)
    with torch.inference_mode():
        _fill(codes, model, condition, seeds, settings, progress)
    return codes.view(len(seeds), *model.config.grid)


def _fill(
    codes: torch.Tensor,
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool,
) -> None:
    config, count = model.config, len(seeds)
    guided = settings.guidance_scale != 1
    if guided:
        condition = condition.cat(condition.null())
    prefix = model.condition(condition, 2 * count if guided else count)
    x = prefix.tokens
    cache = KeyValueCache(config, len(x), x)
    uniform = uniforms(seeds, config.sequence_length).to(x.device)
    for position in tqdm(range(config.sequence_length), unit="code", disable=not progress, leave=False):
        logits = model.logits(model.run(x, prefix.valid, cache)[:, -1]).float()
        if guided:
            logits = guide(logits, settings.guidance_scale)
        codes[:, position] = draw(logits, uniform[:, position], settings)
        drawn = codes[:, position : position + 1]
        x = model.embed_codes(torch.cat((drawn, drawn)) if guided else drawn, prefix.bias)
