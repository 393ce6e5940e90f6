"""What a draw of codes starts from: numbers that belong to a picture's seed, and codes that are given."""

from __future__ import annotations

import torch

from wvq.errors import ConfigError
from wvq.generator.base.filters import FREE


def uniforms(seeds: list[int], length: int) -> torch.Tensor:
    """Uniform numbers (B, T) in [0, 1), row by row from each picture's own generator."""
    return torch.stack([torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def check_fixed(fixed: torch.Tensor, shape: tuple[int, ...], num_codes: int) -> None:
    """Check codes that are given.

    Args:
        fixed: the codes, -1 where they are to be drawn.
        shape: what they must have: B, and the shape of a picture's codes.
        num_codes: codes K of the model.

    Raises:
        ConfigError: another shape or kind, or a code out of range.
    """
    if tuple(fixed.shape) != shape or fixed.is_floating_point():
        raise ConfigError(f"fixed codes must be integers {shape}, got {fixed.dtype} {tuple(fixed.shape)}")
    if not bool(((fixed >= FREE) & (fixed < num_codes)).all()):
        raise ConfigError(f"fixed codes must be in [0, {num_codes}), or {FREE} where they are drawn")
