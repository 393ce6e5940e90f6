"""Products of few rows with a weight matrix, with what stands before and after them in a transformer, in one kernel.

Few rows are limited by the memory that the weights pass through: each program reads some rows of the weight, whole and
once, and norm, gate and residual cost no pass of their own. Sums are in float32 and in a fixed order.
Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from wvq.generator.next_code.kernels.overlap import launch_options, start_next, wait_for_previous

MOST_ROWS = 4  # each row costs its own sums: on an H200, 4 take about as long as cuBLAS, norm and gate apart
TILE = 8192  # weights that a program holds at once
PROGRAMS = 132  # at least so many, one for each multiprocessor of a Hopper GPU


@triton.jit
def _linear_kernel(
    x,
    norm,
    weight,
    residual,
    out,
    eps,
    N,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EARLY: tl.constexpr,
):
    start_next(EARLY)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = (n < N)[:, None] & (k < K)[None, :]
    first = tl.load(weight + n[:, None].to(tl.int64) * K + k[None, :], mask=inside, other=0)
    if GATED:
        second = tl.load(weight + (N + n)[:, None].to(tl.int64) * K + k[None, :], mask=inside, other=0)
    if NORM:
        scale = tl.load(norm + k, mask=k < K, other=0)
    wait_for_previous(EARLY)
    w = first.to(tl.float32)
    if GATED:
        v = second.to(tl.float32)
    for row in tl.static_range(ROWS):
        inputs = tl.load(x + row * K + k, mask=k < K, other=0).to(tl.float32)
        factor = 1.0
        if NORM:  # the root mean square is a factor of the row, and follows the product
            factor = tl.rsqrt(tl.sum(inputs * inputs, 0) / K + eps)
            inputs *= scale.to(tl.float32)
        value = tl.sum(w * inputs[None, :], 1) * factor
        if GATED:
            value *= tl.sigmoid(value) * (tl.sum(v * inputs[None, :], 1) * factor)
        if RESIDUAL:
            value += tl.load(residual + row * N + n, mask=n < N, other=0).to(tl.float32)
        tl.store(out + row * N + n, value.to(out.dtype.element_ty), mask=n < N)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    early: bool = False,
) -> torch.Tensor:
    """x W', after RMSNorm, and before a gate (SwiGLU) or the addition to a residual stream.

    Args:
        x: (M, K) of few rows, contiguous.
        weight: (N, K), or (2 N, K) if gated: first the gate's rows; of any floating type.
        norm: (K,) weight of an RMSNorm of x with ``eps``; none if None.
        gated: the result is silu(first half) * second half.
        residual: (M, N), to which the result is added in place.
        dtype: of the result; that of x if None.
        early: load the weights while the kernel before runs, see :mod:`wvq.generator.next_code.kernels.overlap`.

    Returns:
        (M, N): ``residual`` if it is given, else a new tensor.
    """
    rows, inputs = x.shape
    outputs = len(weight) // 2 if gated else len(weight)
    out = x.new_empty(rows, outputs, dtype=dtype) if residual is None else residual
    block_k = triton.next_power_of_2(inputs)
    block_n = min(16, max(1, TILE // (2 * block_k if gated else block_k)))
    while block_n > 1 and outputs < PROGRAMS * block_n:
        block_n //= 2
    _linear_kernel[(triton.cdiv(outputs, block_n),)](
        x,
        x if norm is None else norm,
        weight,
        out,
        out,
        eps,
        outputs,
        K=inputs,
        ROWS=rows,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        NORM=norm is not None,
        GATED=gated,
        RESIDUAL=residual is not None,
        num_warps=8 if block_k > TILE else 4,
        **launch_options(early),
    )
    return out
