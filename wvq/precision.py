"""Keeps autocast from float16 where its range is too small."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_float16(tensor: torch.Tensor) -> AbstractContextManager:
    """Autocast off where it would use float16: unscaled gradients and sums over a batch exceed its range."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        return torch.autocast(kind, enabled=False)
    return nullcontext()
