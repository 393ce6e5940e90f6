"""The one nearest-code search: exact float32 argmin over the codebook in tiles of bounded memory."""

from __future__ import annotations

import contextlib

import torch

# A tile of scores is N_tile x K float32; 8 MiB stays near the caches of common CPUs and is small on any GPU.
TILE_BYTES = 8 * 2**20


@contextlib.contextmanager
def exact_float32(device_type: str):
    """Float32 products without autocast or TF32: rounded scores would change codes between training and export."""
    # Not set_float32_matmul_precision: it fails in a process that chose its precision through these newer settings.
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@torch.no_grad()
def nearest_codes(features: torch.Tensor, codebook: torch.Tensor, tile_bytes: int = TILE_BYTES) -> torch.Tensor:
    """Index of the code with the smallest squared Euclidean distance to each feature.

    Never builds the N x K matrix: rows are searched in tiles of at most ``tile_bytes`` of scores.

    Args:
        features: (N, D) floating point.
        codebook: (K, D) floating point.
        tile_bytes: bound on the bytes of one tile of scores.

    Returns:
        (N,) int64 in [0, K); the lowest index on ties.

    Raises:
        ValueError: the widths of features and codebook differ.
    """
    if features.ndim != 2 or codebook.ndim != 2 or features.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and codebook {tuple(codebook.shape)} must be (N, D) and (K, D)"
        )
    with exact_float32(features.device.type):
        features, codebook = features.float(), codebook.float()
        # argmin |z - e|^2 = argmin |e|^2 / 2 - z.e: the term |z|^2 does not depend on the code.
        half_squares = codebook.square().sum(1).mul_(0.5)  # K
        rows = max(1, tile_bytes // (4 * len(codebook)))
        tiles = [
            torch.addmm(half_squares, tile, codebook.T, alpha=-1).argmin(1)  # N_tile x K -> N_tile
            for tile in features.split(rows)
        ]
    return torch.cat(tiles) if tiles else features.new_empty(0, dtype=torch.int64)
