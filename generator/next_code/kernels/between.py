"""What stands between the products of many rows, which libraries multiply: norm and gate."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from wvq.generator.next_code.kernels.overlap import launch_options, start_next, wait_for_previous


@triton.jit
def _norm_kernel(x, weight, out, eps, D: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    start_next(EARLY)
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    scale = tl.load(weight + d, mask=d < D, other=0)
    wait_for_previous(EARLY)
    value = tl.load(x + row * D + d, mask=d < D, other=0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / D + eps) * scale.to(tl.float32)
    tl.store(out + row * D + d, value.to(out.dtype.element_ty), mask=d < D)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, early: bool = False) -> torch.Tensor:
    """RMSNorm of (M, D), which is contiguous, with weight (D,)."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _norm_kernel[(len(x),)](x, weight, out, eps, D=x.shape[1], BLOCK=block, num_warps=4, **launch_options(early))
    return out


@triton.jit
def _gate_kernel(x, out, I, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    start_next(EARLY)
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait_for_previous(EARLY)
    gate = tl.load(x + 2 * row * I + i, mask=i < I, other=0).to(tl.float32)
    up = tl.load(x + (2 * row + 1) * I + i, mask=i < I, other=0).to(tl.float32)
    tl.store(out + row * I + i, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=i < I)


def gate(x: torch.Tensor, early: bool = False) -> torch.Tensor:
    """silu of the first half of (M, 2 I) times the second: (M, I)."""
    rows, size = len(x), x.shape[1] // 2
    out = x.new_empty(rows, size)
    _gate_kernel[(rows, triton.cdiv(size, 1024))](x, out, size, BLOCK=1024, **launch_options(early))
    return out
