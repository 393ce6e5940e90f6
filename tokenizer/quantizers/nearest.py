"""The one nearest-code search: an argmin over the codebook, in compiled code or in tiles that fit a cache.

It is taken in float32; in float64 where features and codebook have it.
"""

from __future__ import annotations

import functools
import os

import torch
import torch.nn.functional as F

from wvq.precision import exact_float32
from wvq.tokenizer.quantizers import fused, native

SIMILARITIES = ("euclidean", "dot")
_BLOCK = 16  # rows and codes of the smallest product in the tiled search


@functools.cache
def cache_bytes(device: torch.device) -> int:
    """Size of the cache that a tile of scores should stay in: a processor's second level, a GPU's (32 MiB at least)."""
    if device.type == "cuda":
        return max(torch.cuda.get_device_properties(device).L2_cache_size, 32 * 2**20)
    try:
        size = os.sysconf("SC_LEVEL2_CACHE_SIZE") if device.type == "cpu" else 0
    except (AttributeError, ValueError, OSError):  # not on this system
        size = 0
    return size if size > 0 else 2**20


@torch.no_grad()
def nearest_codes(
    features: torch.Tensor, codebook: torch.Tensor, tile_bytes: int | None = None, similarity: str = "euclidean"
) -> torch.Tensor:
    """Index of the code with the smallest squared Euclidean distance to each feature, as float32 computes it.

    With the similarity ``dot`` it is the code of the largest inner product. Where both are float64, it is computed so.

    Never builds the N x K matrix. The search runs in compiled code that keeps scores in registers: on the CPU if there
    is a C++ compiler, on a GPU if there is Triton. Else rows are searched in tiles of scores that fit a cache.

    Args:
        features: (N, D) floating point.
        codebook: (K, D) floating point, K > 0.
        tile_bytes: search in tiles of at most this many bytes of scores, whatever the device.
        similarity: one of ``SIMILARITIES``.

    Returns:
        (N,) int64 in [0, K); the lowest index on ties.

    Raises:
        ValueError: wrong shapes, or an empty codebook.
    """
    if features.ndim != 2 or codebook.ndim != 2 or features.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and codebook {tuple(codebook.shape)} must be (N, D) and (K, D)"
        )
    if not len(codebook):
        raise ValueError("codebook must hold at least one code, got none")
    with exact_float32(features.device.type):
        wide = features.dtype == codebook.dtype == torch.float64
        if not wide:
            features, codebook = features.float(), codebook.float()
        if tile_bytes is None and not wide and fused.usable(features, codebook):
            codes = fused.search(features, codebook, squares=similarity == "euclidean")
            if codes is not None:
                return codes
        # argmin |z - e|^2 = argmin |e|^2 / 2 - z.e: the term |z|^2 does not depend on the code. Without |e|^2 / 2 it is
        # the argmax of z.e.
        if similarity == "euclidean":
            half_squares = codebook.square().sum(1).mul_(0.5)  # K
        else:
            half_squares = codebook.new_zeros(len(codebook))
        on_cpu = features.device.type == "cpu" and tile_bytes is None and len(codebook) <= native.MAX_CODES
        if on_cpu and not wide and native.library() is not None:
            return native.search(features, codebook, half_squares)
        return _tiled(features, codebook, half_squares, tile_bytes or cache_bytes(features.device))


def _tiled(features: torch.Tensor, codebook: torch.Tensor, half_squares: torch.Tensor, tile_bytes: int) -> torch.Tensor:
    # Rows and codes are padded to whole blocks: for a single row or a few codes the libraries use other routines,
    # which round differently, and a feature's code would depend on how many others came with it.
    count, padding = len(features), -len(codebook) % _BLOCK
    features = F.pad(features, (0, 0, 0, -count % _BLOCK))
    codes = F.pad(codebook, (0, 0, 0, padding)).T
    half_squares = F.pad(half_squares, (0, padding), value=torch.inf)
    rows = max(1, tile_bytes // (features.element_size() * len(half_squares) * _BLOCK)) * _BLOCK
    scores = features.new_empty(min(rows, len(features)), len(half_squares))  # one for all tiles
    codes_of_tiles = [features.new_empty(0, dtype=torch.int64)]
    for tile in features.split(rows) if count else ():
        codes_of_tiles.append(torch.addmm(half_squares, tile, codes, alpha=-1, out=scores[: len(tile)]).argmin(1))
    # An infinite feature makes NaN of the padding: any code will do, as long as it exists.
    return torch.cat(codes_of_tiles)[:count].clamp_max_(len(codebook) - 1)
