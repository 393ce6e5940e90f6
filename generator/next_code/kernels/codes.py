"""From the last code to the first hidden state, and from logits to the next code."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from wvq.generator.next_code.kernels.overlap import launch_options, start_next, wait_for_previous

LARGEST_TILE = 16384  # codes that a draw holds at once


@triton.jit
def _embed_kernel(
    codes,
    position,
    table,
    bias,
    targets,
    out,
    count,
    length,
    D,
    BLOCK_D: tl.constexpr,
    BIAS: tl.constexpr,
    TARGETS: tl.constexpr,
    EARLY: tl.constexpr,
):
    start_next(EARLY)
    row = tl.program_id(0)
    place = tl.load(position)
    code = tl.load(codes + (row % count) * length + place - 1)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    value = tl.load(table + code * D + d, mask=d < D, other=0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + row * D + d, mask=d < D, other=0).to(tl.float32)
    if TARGETS:
        value += tl.load(targets + place * D + d, mask=d < D, other=0).to(tl.float32)
    tl.store(out + row * D + d, value.to(out.dtype.element_ty), mask=d < D)


def embed(
    codes: torch.Tensor,
    position: torch.Tensor,
    table: torch.Tensor,
    rows: int,
    bias: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
    early: bool = False,
) -> torch.Tensor:
    """Input tokens (M, D) of the codes ahead of ``position``.

    Args:
        codes: (B, T) int64.
        position: (1,) int64, at least 1.
        table: (K, D) vectors of the codes.
        rows: M, a multiple of B: the codes are repeated.
        bias: (M, 1, D) to add, contiguous; nothing if None.
        targets: (T, D), of which row ``position`` is added; nothing if None.
        early: let the next kernel start early. This one is the first of a step, and does not.
    """
    count, length = codes.shape
    out = table.new_empty(rows, table.shape[1])
    block = min(1024, triton.next_power_of_2(table.shape[1]))
    _embed_kernel[(rows, triton.cdiv(table.shape[1], block))](
        codes,
        position,
        table,
        table if bias is None else bias,
        table if targets is None else targets,
        out,
        count,
        length,
        table.shape[1],
        BLOCK_D=block,
        BIAS=bias is not None,
        TARGETS=targets is not None,
        EARLY=early,
    )
    return out


@triton.jit
def _logits(start, other, k, K, scale, temperature, GUIDED: tl.constexpr):
    """Guided logits of the codes k, minus infinity outside of K; the sums are those of torch.lerp."""
    value = tl.load(start + k, mask=k < K, other=-float("inf")).to(tl.float32)
    if GUIDED:
        null = tl.load(other + k, mask=k < K, other=0).to(tl.float32)
        toward = value - null
        value = tl.where(scale < 0.5, null + scale * toward, value - toward * (1 - scale))
        value = tl.where(k < K, value, -float("inf"))
    return value / temperature


@triton.jit
def _draw_kernel(
    logits,
    uniform,
    scales,
    position,
    given,
    codes,
    count,
    length,
    temperature,
    min_p,
    K: tl.constexpr,  # where one tile holds all codes, the compiler reads and adds them once
    BLOCK: tl.constexpr,
    GUIDED: tl.constexpr,
    GREEDY: tl.constexpr,
    ONE: tl.constexpr,
    EARLY: tl.constexpr,
):
    start_next(EARLY)
    wait_for_previous(EARLY)
    row = tl.program_id(0)
    place = tl.load(position)
    scale = tl.load(scales + place)
    own = logits + row.to(tl.int64) * K
    other = logits + (count + row).to(tl.int64) * K
    best = -float("inf")
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        best = tl.maximum(best, tl.max(_logits(own, other, k, K, scale, temperature, GUIDED), 0))
    total = 0.0
    target = 0.0
    if not GREEDY:
        for start in range(0, K, BLOCK):
            k = start + tl.arange(0, BLOCK)
            share = tl.exp(_logits(own, other, k, K, scale, temperature, GUIDED) - best)
            share = tl.where(share < min_p, 0.0, share)
            reached = total + tl.cumsum(share, 0)
            total = tl.maximum(total, tl.max(tl.where(share > 0, reached, 0.0), 0))
        # 1 - u lies in (0, 1], and the total is the largest of the sums below: one of them reaches this.
        target = (1 - tl.load(uniform + row * length + place)) * total
    total = 0.0
    drawn = K
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = _logits(own, other, k, K, scale, temperature, GUIDED)
        if GREEDY:
            chosen = value == best
        else:
            share = tl.exp(value - best)
            share = tl.where(share < min_p, 0.0, share)
            reached = total + tl.cumsum(share, 0)
            chosen = (reached >= target) & (share > 0)
            total = tl.maximum(total, tl.max(tl.where(share > 0, reached, 0.0), 0))
        drawn = tl.minimum(drawn, tl.min(tl.where(chosen, k, K), 0))
    fixed = tl.load(given + row * length + place)
    tl.store(codes + row * length + place, tl.where(fixed < 0, tl.minimum(drawn, K - 1).to(tl.int64), fixed))
    if ONE:  # no other program reads the position
        tl.store(position, place + 1)


def draw(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    scales: torch.Tensor,
    position: torch.Tensor,
    given: torch.Tensor,
    codes: torch.Tensor,
    temperature: float,
    min_p: float = 0.0,
    early: bool = False,
) -> None:
    """Write the codes at ``position`` and go one on: guidance, temperature, min-p and the inverse of the CDF.

    Args:
        logits: (B, K) of any floating type, or (2 B, K) if guided: first those with the condition.
        uniform: (B, T) numbers in [0, 1).
        scales: (T,) float32, guidance scale at each position.
        position: (1,) int64.
        given: (B, T) int64, codes that are written in place of drawn ones, or -1.
        codes: (B, T) int64.
        temperature: 0 takes the likeliest code.
        min_p: share of the likeliest code's probability that a code must have.
        early: see :mod:`wvq.generator.next_code.kernels.overlap`.
    """
    count, length = codes.shape
    size = logits.shape[1]
    block = min(LARGEST_TILE, triton.next_power_of_2(size))
    _draw_kernel[(count,)](
        logits,
        uniform,
        scales,
        position,
        given,
        codes,
        count,
        length,
        float(temperature or 1.0),
        float(min_p),
        K=size,
        BLOCK=block,
        GUIDED=len(logits) > count,
        GREEDY=temperature == 0,
        ONE=count == 1,
        num_warps=16 if block >= 8192 else 4,
        **launch_options(early),
    )
    if count > 1:
        position.add_(1)
