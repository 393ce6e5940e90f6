"""Exact likelihood of given codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.interface import CodeGenerator


def code_log_probabilities(model: CodeGenerator, codes: torch.Tensor, condition: Condition) -> torch.Tensor:
    """Logarithm of each code's probability given the condition and the codes before it, without guidance.

    Codes before it are those of earlier passes: of coarser scales, where a scale is drawn at once.

    One forward pass without a cache: all codes are known.

    Args:
        model: in eval mode.
        codes: (B, T) int64 in [0, K), or in the shape of their layout.
        condition: condition of B pictures.

    Returns:
        (B, T) float32, in nats, in the flat order of :mod:`wvq.data.layout`; their sum over T is the picture's
        log-likelihood.

    Raises:
        ConfigError: another number of codes than the model's pictures have, or a code out of range.
    """
    codes = codes.to(model.device)
    if codes.is_floating_point() or not bool(((codes >= 0) & (codes < model.config.num_codes)).all()):
        raise ConfigError(f"codes must be integers in [0, {model.config.num_codes})")
    codes = model.whole_pictures(codes)
    with torch.no_grad():
        logits = model(codes, **condition.named()).logits
    return -F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
