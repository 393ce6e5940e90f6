"""The draw of codes from logits (B, K): which may be drawn, by top-k, top-p and min-p, and which one is."""

from __future__ import annotations

import torch

from wvq.generator.base.sampling_settings import SamplingSettings

FREE = -1  # in fixed codes: a position that is drawn


def filter_logits(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    """Logits with the codes outside of top-k, then top-p, then min-p, at minus infinity.

    Args:
        logits: (B, K), not changed.
        top_k: codes that stay; 0 keeps all.
        top_p: share of probability that the likeliest codes must reach to stay; 1 keeps all.
        min_p: share of the likeliest code's probability that a code must have to stay; 0 keeps all.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # the likeliest code always stays
        removed = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(removed, -torch.inf)
    if min_p > 0:
        probabilities = logits.softmax(-1)
        least = min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < least, -torch.inf)
    return logits


def draw(logits: torch.Tensor, uniform: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Codes (B,) drawn from guided logits (B, K) by temperature, filters and the inverse of the CDF.

    Args:
        logits: (B, K), not changed.
        uniform: (B,) numbers in [0, 1), one a draw.
        settings: temperature and filters.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = filter_logits(logits.float() / settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    cumulative = logits.softmax(-1).cumsum(-1)
    # 1 - u lies in (0, 1]: the first code that reaches it has a probability above 0, whatever was rounded.
    target = (1 - uniform[:, None]) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target).squeeze(1)
