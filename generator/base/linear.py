"""The generator's linear layer without bias, and its weights in the order in which sampling on a CPU is fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from wvq.memory import available_memory

FULL_ROWS = 4  # oneDNN takes 1.5 times as long over 2 rows as over 4
KEPT_FREE = 2  # weights are packed only where this many times their bytes are free


class Projection(nn.Linear):
    """x W'. ``packed`` holds a copy of W in oneDNN's block order while :func:`packed_weights` is open."""

    packed: torch.Tensor | None = None

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), by the packed copy if there is one."""
        if torch.compiler.is_compiling():  # Inductor packs by itself
            return super().forward(x)
        packed = self.packed  # once: another thread may end its context
        rows = x.shape[:-1].numel()
        if packed is None or x.dtype != self.weight.dtype or rows == 0:
            return super().forward(x)
        if rows >= FULL_ROWS:
            return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        padded = F.pad(x.reshape(rows, -1), (0, 0, 0, FULL_ROWS - rows))
        product = torch.ops.mkldnn._linear_pointwise(padded, packed, None, "none", [], "")
        return product[:rows].view(*x.shape[:-1], self.out_features)


@contextmanager
def packed_weights(model: nn.Module, always: bool = False, beside: int = 0) -> Iterator[None]:
    """Multiply by packed weights, through oneDNN, while the context is open; for inference alone.

    Values are the same but for rounding.

    A sampling step multiplies few rows by all weights. PyTorch's BLAS reads the weights in an order that is slow for
    so few rows; packed into blocks they give 2.3 times the speed at 8 rows of size B on two cores, and twice at 2 and
    32 (benchmarks/sampling.py). The copy takes as much memory as the weights: where that is short, or on
    another kind of processor, nothing changes. Nested contexts pack once.

    Args:
        model: the model.
        always: pack however little memory is free, so that products do not depend on that.
        beside: bytes that are needed for other things.
    """
    layers = _packable(model)
    size = sum(layer.weight.nbytes for layer in layers)
    free = available_memory(torch.device("cpu"))
    if not always and free is not None and KEPT_FREE * size + beside > free:
        layers = []
    try:
        with torch.inference_mode():
            for layer in layers:
                layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the copies that :func:`packed_weights` makes of the weights of a model."""
    return sum(layer.weight.nbytes for layer in _packable(model))


def _packable(model: nn.Module) -> list[Projection]:
    layers = [layer for layer in model.modules() if isinstance(layer, Projection) and layer.packed is None]
    return [layer for layer in layers if can_pack(layer.weight)]


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN has a fast product for these weights: on the CPUs that it was measured on (x86)."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.cpu._is_avx2_supported():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return weight.dtype == torch.float32 or bf16
