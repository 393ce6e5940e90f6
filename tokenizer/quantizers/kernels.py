"""Triton kernels of the nearest-code search: scores stay in registers, and one key for each feature leaves.

A key has the score, |e|^2 / 2 - z.e, in its upper half and the code in its lower: the smallest key of a feature,
whichever program found it, is the lowest code of the lowest score.

Shapes: N features z, K codes e, D dims.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_KEY = 2**63 - 1  # more than that of any score


@triton.jit
def _offer(keys, rows, inside, scores, codes):
    """Lower the keys of rows to these scores and codes, where they are smaller."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # + 0.0: -0.0 ties with 0.0
    ordered = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    tl.atomic_min(keys + rows, (ordered.to(tl.int64) << 32) | codes.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["num_features", "first_code", "padded_codes", "tiles_each"])
def search_few_dims(
    features,  # N D
    codes,  # D, K padded to whole tiles
    half_squares,  # K padded by infinity
    keys,  # N
    num_features,
    first_code,
    padded_codes,
    tiles_each,  # tiles of codes that a program searches
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Scores by float32 multiply-adds in the order of nearest.cpp, and so to the bit the same from equal |e|^2 / 2."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_features
    negated: tl.tuple = ()
    for dim in tl.static_range(DIM):
        negated += (-tl.load(features + rows * DIM + dim, mask=inside, other=0.0)[:, None],)
    lanes = tl.arange(0, CODES)
    first = tl.program_id(1) * tiles_each
    last = tl.minimum(first + tiles_each, padded_codes // CODES)
    # Each lane keeps its own lowest score, and they are compared once, at the end.
    best = tl.full((ROWS, CODES), float("inf"), tl.float32)
    best_tile = tl.zeros((ROWS, CODES), tl.int32) + first
    for tile in tl.range(first, last, loop_unroll_factor=UNROLL):
        places = tile * CODES + lanes
        scores = tl.broadcast_to(tl.load(half_squares + places)[None, :], (ROWS, CODES))
        for dim in tl.static_range(DIM):
            column = tl.load(codes + dim * padded_codes.to(tl.int64) + places)
            scores = tl.fma(negated[dim], column[None, :], scores)
        lower = scores < best  # false for NaN
        best = tl.where(lower, scores, best)
        best_tile = tl.where(lower, tile, best_tile)
    lowest = tl.min(best, axis=1)
    found = tl.where(best == lowest[:, None], best_tile * CODES + lanes[None, :], 2**31 - 1)
    _offer(keys, rows, inside, lowest, first_code + tl.min(found, axis=1))


@triton.jit(do_not_specialize=["count"])
def split_vectors(
    vectors,  # count, DIM
    high,  # rows, WIDTH float16
    low,  # rows, WIDTH float16
    scales,  # rows
    half_squares,  # rows
    count,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Write each vector as scale (high + low), scale a power of 2, and half its square; 0 and infinity past the last.

    With the largest magnitude of a vector scaled to [1, 2), what two float16 leave is below 2^-22 of an element or
    2^-25 of the largest.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (rows < count)[:, None]
    starts = rows.to(tl.int64)[:, None] * DIM
    largest = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    for start in range(0, WIDTH, DIMS):
        dims = start + tl.arange(0, DIMS)
        part = tl.load(vectors + starts + dims[None, :], mask=inside & (dims < DIM)[None, :], other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(part), axis=1))
        squares += tl.sum(part * part, axis=1)
    # Powers of 2 from the exponent of the largest, within the range that has a float32 inverse.
    exponent = tl.minimum(tl.maximum((largest.to(tl.int32, bitcast=True) >> 23) & 0xFF, 1), 253)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    tl.store(scales + rows, (exponent << 23).to(tl.float32, bitcast=True))
    tl.store(half_squares + rows, tl.where(rows < count, squares / 2, float("inf")))
    for start in range(0, WIDTH, DIMS):
        dims = start + tl.arange(0, DIMS)
        part = tl.load(vectors + starts + dims[None, :], mask=inside & (dims < DIM)[None, :], other=0.0)
        scaled = part * inverse[:, None]
        rounded = scaled.to(tl.float16)
        places = rows[:, None] * WIDTH + dims[None, :]
        tl.store(high + places, rounded)
        tl.store(low + places, (scaled - rounded.to(tl.float32)).to(tl.float16))


@triton.jit(do_not_specialize=["num_features", "first_code", "num_tiles", "tiles_each"])
def search_many_dims(
    feature_high,  # rows, WIDTH float16, as all halves
    feature_low,
    feature_scales,  # rows
    code_high,
    code_low,
    code_scales,  # codes
    half_squares,  # codes
    keys,  # of the first num_features rows
    num_features,
    first_code,
    num_tiles,
    tiles_each,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Scores by three float16 products on tensor cores, which are summed in float32: high high + high low + low high.

    The products that are left out are below 2^-22 of those that are not: the sum is as exact as one in float32.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_features
    lanes = tl.arange(0, CODES)
    row_scales = tl.load(feature_scales + rows)[:, None]
    first = tl.program_id(1) * tiles_each
    last = tl.minimum(first + tiles_each, num_tiles)
    best = tl.full((ROWS,), float("inf"), tl.float32)
    best_code = tl.zeros((ROWS,), tl.int32) + first * CODES
    for tile in range(first, last):
        codes = tile * CODES + lanes
        products = tl.zeros((ROWS, CODES), tl.float32)
        for start in range(0, WIDTH, DIMS):
            dims = start + tl.arange(0, DIMS)
            feature_places = rows[:, None] * WIDTH + dims[None, :]
            code_places = codes[None, :] * WIDTH + dims[:, None]
            z_high, z_low = tl.load(feature_high + feature_places), tl.load(feature_low + feature_places)
            e_high, e_low = tl.load(code_high + code_places), tl.load(code_low + code_places)
            products = tl.dot(z_low, e_high, products)
            products = tl.dot(z_high, e_low, products)
            products = tl.dot(z_high, e_high, products)
        scales = tl.load(code_scales + codes)[None, :] * row_scales
        scores = tl.load(half_squares + codes)[None, :] - products * scales
        lowest = tl.min(scores, axis=1)
        code = tl.min(tl.where(scores == lowest[:, None], codes[None, :], 2**31 - 1), axis=1)
        lower = lowest < best  # false for NaN
        best = tl.where(lower, lowest, best)
        best_code = tl.where(lower, code, best_code)
    _offer(keys, rows, inside, best, first_code + best_code)
