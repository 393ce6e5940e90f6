"""Where float32 stays float32: exact products, no autocast to float16 where its range is too small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


def no_float16(tensor: torch.Tensor) -> AbstractContextManager:
    """Autocast off where it would use float16: unscaled gradients and sums over a batch exceed its range."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float32, or as it is where that is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Float32 products and convolutions without autocast or TF32, whose rounding would change codes between uses."""
    # Not set_float32_matmul_precision: it fails in a process that chose its precision through these newer settings.
    cudnn: Any = torch.backends.cudnn  # torch sets the attributes of these two at import, which its types do not show
    mkldnn: Any = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, mkldnn.matmul, cudnn.conv, mkldnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
