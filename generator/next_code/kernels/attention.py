"""Attention of one new token over a cache, with all that stands between the products before and after it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from wvq.generator.next_code.kernels.overlap import launch_options, start_next, wait_for_previous

FEW_PROGRAMS = 264  # two for each multiprocessor of a Hopper GPU: fewer take larger parts of the keys at once


@triton.jit
def _turned(start, norm, c, cos, sin, eps, C: tl.constexpr, NORM: tl.constexpr):
    """A head (C,), normalised and rotated: each pair (c, c + C/2) by its angle."""
    first = c < C // 2
    partner = tl.where(first, c + C // 2, c - C // 2)
    inside = c < C
    a = tl.load(start + c, mask=inside, other=0).to(tl.float32)
    b = tl.load(start + partner, mask=inside, other=0).to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(a * a, 0) / C + eps)
        a *= factor * tl.load(norm + c, mask=inside, other=0).to(tl.float32)
        b *= factor * tl.load(norm + partner, mask=inside, other=0).to(tl.float32)
    return a * cos + tl.where(first, -b, b) * sin


@triton.jit
def _tile(
    keys,
    values,
    places,
    valid,
    start,
    token,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    VALID: tl.constexpr,
):
    """Keys and values from a token on that are ahead of the new one, and which of them are seen."""
    s = start + tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    seen = s < token
    if VALID:
        seen = seen & (tl.load(valid + s, mask=seen, other=0) != 0)
    tile = places + s[:, None] * C + c[None, :]
    mask = seen[:, None] & (c < C)[None, :]
    return seen, tl.load(keys + tile, mask=mask, other=0), tl.load(values + tile, mask=mask, other=0)


@triton.jit
def _attention_kernel(
    qkv,
    keys,
    values,
    cos_table,
    sin_table,
    position,
    valid,
    query_norm,
    key_norm,
    out,
    eps,
    scale,
    length,
    prefix,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    NORM: tl.constexpr,
    VALID: tl.constexpr,
    EARLY: tl.constexpr,
):
    start_next(EARLY)
    row = tl.program_id(0)
    head = tl.program_id(1)
    KV_HEADS: tl.constexpr = HEADS // GROUP
    kv_head = head // GROUP
    kind = keys.dtype.element_ty
    token = (tl.load(position) - 1 + prefix).to(tl.int32)
    c = tl.arange(0, BLOCK_C)
    inside = c < C
    angle = token * (C // 2) + tl.where(c < C // 2, c, c - C // 2)
    cos = tl.load(cos_table + angle, mask=inside, other=0)
    sin = tl.load(sin_table + angle, mask=inside, other=0)
    places = (row * KV_HEADS + kv_head).to(tl.int64) * length * C
    valid += row * length
    seen, k, v = _tile(keys, values, places, valid, 0, token, C, BLOCK_C, BLOCK_S, VALID)
    wait_for_previous(EARLY)
    heads = qkv + row * (HEADS + 2 * KV_HEADS) * C
    query = _turned(heads + head * C, query_norm, c, cos, sin, eps, C, NORM).to(kind).to(tl.float32) * scale
    key = _turned(heads + (HEADS + kv_head) * C, key_norm, c, cos, sin, eps, C, NORM).to(kind)
    value = tl.load(heads + (HEADS + KV_HEADS + kv_head) * C + c, mask=inside, other=0).to(kind)
    if head % GROUP == 0:  # the programs of a group share keys and values: one writes them, none reads the new ones
        tl.store(keys + places + token * C + c, key, mask=inside)
        tl.store(values + places + token * C + c, value, mask=inside)
    best = tl.sum(query * key.to(tl.float32), 0)
    total = 1.0
    mixed = value.to(tl.float32)
    for start in range(0, token, BLOCK_S):
        # The next tile is on its way while this one is added.
        next_seen, next_k, next_v = _tile(
            keys, values, places, valid, start + BLOCK_S, token, C, BLOCK_C, BLOCK_S, VALID
        )
        scores = tl.where(seen, tl.sum(k.to(tl.float32) * query[None, :], 1), -float("inf"))
        larger = tl.maximum(best, tl.max(scores, 0))
        shares = tl.exp(scores - larger)
        shrink = tl.exp(best - larger)
        total = total * shrink + tl.sum(shares, 0)
        mixed = mixed * shrink + tl.sum(shares[:, None] * v.to(tl.float32), 0)
        best = larger
        seen, k, v = next_seen, next_k, next_v
    tl.store(out + (row * HEADS + head) * C + c, (mixed / total).to(out.dtype.element_ty), mask=inside)


def attend(
    qkv: torch.Tensor,
    memory: torch.Tensor,
    table: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor,
    prefix: int,
    valid: torch.Tensor | None = None,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 0.0,
    early: bool = False,
) -> torch.Tensor:
    """Attention of the token that reads code ``position`` - 1, whose key and value are written into the cache.

    Args:
        qkv: (M, (H + 2 H') C) queries, keys and values of M rows, contiguous.
        memory: (2, R, H', S, C) keys and values of R >= M rows, contiguous.
        table: cos and sin (S, C/2) of the rotation.
        position: (1,) int64.
        prefix: tokens ahead of the codes.
        valid: (R, S) bool, False for keys that are not seen; all are if None.
        norms: weights (C,) of the RMSNorms of queries and keys, with ``eps``; none if None.
        early: load keys and values while the kernel before runs, see :mod:`wvq.generator.next_code.kernels.overlap`.

    Returns:
        (M, H C).
    """
    _, _, kv_heads, length, size = memory.shape
    rows = len(qkv)
    heads = qkv.shape[1] // size - 2 * kv_heads
    out = qkv.new_empty(rows, heads * size)
    few = rows * heads < FEW_PROGRAMS
    block_c = triton.next_power_of_2(size)
    # A program that starts early has to fit beside those of the product before it: it holds two smaller tiles at once.
    block_s = max(16, ((8192 if early else 16384) if few else 4096) // block_c)
    query_norm, key_norm = norms or (qkv, qkv)
    _attention_kernel[(rows, heads)](
        qkv,
        memory[0],
        memory[1],
        *table,
        position,
        qkv if valid is None else valid.view(torch.uint8),
        query_norm,
        key_norm,
        out,
        eps,
        size**-0.5,
        length,
        prefix,
        HEADS=heads,
        GROUP=heads // kv_heads,
        C=size,
        BLOCK_C=block_c,
        BLOCK_S=block_s,
        NORM=norms is not None,
        VALID=valid is not None,
        num_warps=8 if few else 4,
        **launch_options(early),
    )
    return out
