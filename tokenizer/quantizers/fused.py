"""Calls the Triton kernels of kernels.py; all of it is optional, and the caller has a version in plain torch.

Few dims are multiplied in float32. More are split in two float16, of which the tensor cores take three products for
one. Both need the codes in another form, and get them in pieces: beside the codes that are found, a search takes less
than 64 MiB.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
import threading
from types import ModuleType

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

MAX_CODES = 2**31 - 2**10  # indices are 32-bit inside, and padded to whole tiles
FEW_DIMS = 16  # up to which a thread holds its features in registers
# Features and codes of a tile, and how a program runs it. By the machine code for compute capability 9.0 no register is
# spilled, and two programs (up to 8 dims, and of many) share a multiprocessor: one computes while the other waits.
FEW_DIMS_TILE = {"ROWS": 64, "CODES": 32, "UNROLL": 4, "num_warps": 8}
MANY_DIMS_TILE = {"ROWS": 128, "CODES": 128, "DIMS": 32, "num_warps": 4, "num_stages": 3}
_PROGRAMS = 2_048  # that a search is cut into at least, where it has as many tiles: several for each multiprocessor
_PIECE_BYTES = 2**24  # of features, and twice of codes, in another form at a time

failed = threading.Event()  # a kernel did not compile or start: none is tried again


@functools.cache
def kernels() -> ModuleType | None:
    """The module of the kernels, or None where it is not available: no Triton, or WVQ_TRITON=0 in the environment."""
    if os.environ.get("WVQ_TRITON", "1") == "0":
        return None
    try:
        return importlib.import_module("wvq.tokenizer.quantizers.kernels")
    except Exception as error:  # not there, or a version that raises something of its own
        _warn(error)
        return None


def usable(features: torch.Tensor, codebook: torch.Tensor) -> bool:
    """Whether the kernels can search these: on a GPU that has what they need."""
    dim = features.shape[1]
    if features.device.type != "cuda" or not dim or len(codebook) > MAX_CODES:
        return False
    # Before 8.0 Triton has no products on tensor cores, and takes minutes to compile them without.
    return dim <= FEW_DIMS or torch.cuda.get_device_capability(features.device) >= (8, 0)


def search(features: torch.Tensor, codebook: torch.Tensor, squares: bool = True) -> torch.Tensor | None:
    """Lowest index (N,) int64 of the nearest code, or None where the kernels do not run, which is said once.

    Args:
        features: (N, D) float32.
        codebook: (K, D) float32 on the same device; K > 0.
        squares: count |e|^2 / 2 beside -z.e; without it the code of the largest product z.e is found.
    """
    module = kernels()
    if module is None or failed.is_set():
        return None
    keys = torch.full((len(features),), module.NO_KEY, dtype=torch.int64, device=features.device)
    run = _search_few_dims if features.shape[1] <= FEW_DIMS else _search_many_dims
    try:
        with torch.cuda.device_of(features):
            run(module, features.contiguous(), codebook.contiguous(), keys, squares)
    except torch.OutOfMemoryError:  # no fault of the kernels
        raise
    except Exception as error:  # no class in common: no C compiler, a card with less shared memory, ...
        failed.set()
        _warn(error)
        return None
    return keys.bitwise_and_(2**32 - 1)  # the lower half of a key is the code


def _warn(error: Exception) -> None:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    logger.warning("the fused nearest-code search is not available, using torch's products: %s", reason)


def _search_few_dims(
    module: ModuleType, features: torch.Tensor, codebook: torch.Tensor, keys: torch.Tensor, squares: bool
) -> None:
    (count, dim), tile = features.shape, FEW_DIMS_TILE
    size = _PIECE_BYTES // (4 * dim)
    for index, piece in enumerate(codebook.split(size) if count else ()):
        padding = -len(piece) % tile["CODES"]
        half_squares = piece.square().sum(1).mul_(0.5) if squares else piece.new_zeros(len(piece))
        half_squares = F.pad(half_squares, (0, padding), value=torch.inf)
        codes = F.pad(piece.T, (0, padding)).contiguous()  # D K
        grid, tiles_each = _grid(count, len(half_squares), tile)
        module.search_few_dims[grid](
            *(features, codes, half_squares, keys),
            *(count, index * size, len(half_squares), tiles_each),
            DIM=dim,
            **tile,
        )


def _search_many_dims(
    module: ModuleType, features: torch.Tensor, codebook: torch.Tensor, keys: torch.Tensor, squares: bool
) -> None:
    tile, width = MANY_DIMS_TILE, _whole(features.shape[1], MANY_DIMS_TILE["DIMS"])
    rows = _whole(min(len(features), _PIECE_BYTES // (4 * width)), tile["ROWS"])
    size = _whole(min(len(codebook), 2 * _PIECE_BYTES // (4 * width)), tile["CODES"])
    z, e = _Halves(rows, width, features.device), _Halves(size, width, features.device)
    for part, part_keys in zip(features.split(rows), keys.split(rows), strict=True) if len(features) else ():
        z.fill(module, part, tile["ROWS"])
        for index, piece in enumerate(codebook.split(size)):
            e.fill(module, piece, tile["CODES"])
            if not squares:
                e.half_squares[: len(piece)].zero_()  # those behind stay infinite
            grid, tiles_each = _grid(len(part), len(piece), tile)
            module.search_many_dims[grid](
                *(z.high, z.low, z.scales, e.high, e.low, e.scales, e.half_squares, part_keys),
                *(len(part), index * size, math.ceil(len(piece) / tile["CODES"]), tiles_each),
                WIDTH=width,
                **tile,
            )


class _Halves:
    # Room for vectors as scale (high + low), zeros up to a whole number of dims and of tiles.
    def __init__(self, count: int, width: int, device: torch.device):
        self.high, self.low = (torch.empty(count, width, dtype=torch.float16, device=device) for _ in range(2))
        self.scales, self.half_squares = (torch.empty(count, device=device) for _ in range(2))

    def fill(self, module: ModuleType, vectors: torch.Tensor, tile: int) -> None:
        count, dim = vectors.shape
        rows, width = 16, self.high.shape[1]
        module.split_vectors[(_whole(count, tile) // rows,)](
            *(vectors, self.high, self.low, self.scales, self.half_squares, count),
            **{"DIM": dim, "WIDTH": width, "ROWS": rows, "DIMS": MANY_DIMS_TILE["DIMS"]},
        )


def _whole(count: int, tile: int) -> int:
    return max(1, math.ceil(count / tile)) * tile


def _grid(num_features: int, num_codes: int, sizes: dict[str, int]) -> tuple[tuple[int, int], int]:
    """Programs over features and over codes, and the tiles of codes of each: with few features the codes are shared."""
    rows, tiles = math.ceil(num_features / sizes["ROWS"]), math.ceil(num_codes / sizes["CODES"])
    tiles_each = math.ceil(tiles / min(tiles, math.ceil(_PROGRAMS / rows)))
    return (rows, math.ceil(tiles / tiles_each)), tiles_each
