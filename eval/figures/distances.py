"""Distances between sets of feature vectors: Frechet and kernel distance, inception score, nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from wvq.errors import DataError

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
INCEPTION_SCORE_SPLITS = 10


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Mean and covariance (divided by N - 1) of features (N, D), from sums over chunks in float64.

    Raises:
        DataError: fewer than two features, or values that are not finite.
    """
    count, dim = features.shape
    if count < 2:
        raise DataError(f"a covariance needs at least 2 pictures, not {count}")
    total = torch.zeros(dim, dtype=torch.float64)
    outer = torch.zeros(dim, dim, dtype=torch.float64)
    for chunk in features.split(4096):
        chunk = _finite_double(chunk)
        total += chunk.sum(0)
        outer += chunk.T @ chunk
    mean = total / count
    return Moments(mean, (outer - count * torch.outer(mean, mean)) / (count - 1))


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """Squared Frechet distance between the Gaussians of two feature sets (FID, Heusel et al. 2017, equation 6).

    Biased upward at small N: compare only values of equal N.

    Args:
        a, b: features (N, D), or their moments.

    Raises:
        DataError: fewer than two features on a side, other dims, or values that are not finite.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        _check_pair(a, b)
        if max(len(a), len(b)) < a.shape[1]:
            return _frechet_distance_of_few(a, b)
    first, second = (moments(side) if isinstance(side, Tensor) else side for side in (a, b))
    if len(first.mean) != len(second.mean):
        raise DataError(f"features of two networks: {len(first.mean)} and {len(second.mean)} dims")
    sides = [{"mu": side.mean.numpy(), "sigma": side.covariance.numpy()} for side in (first, second)]
    return max(0.0, fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID])


def _frechet_distance_of_few(a: Tensor, b: Tensor) -> float:
    """The same value from N x M instead of D x D matrices: with centred features X, Y and scaled S = X'X, T = Y'Y, the
    trace of (S T)^1/2 is the sum of the singular values of X Y'. It takes milliseconds, and singular sides are exact.
    """
    a, b = _finite_double(a), _finite_double(b)
    x, y = ((side - side.mean(0)) / (len(side) - 1) ** 0.5 for side in (a, b))
    trace_of_root = torch.linalg.svdvals(x @ y.T).sum()
    value = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * trace_of_root
    return max(0.0, value.item())


def kernel_distance(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """Unbiased squared MMD with the kernel (x y / D + 1)^3 (KID, Binkowski et al. 2018, section 4); may be below 0.

    Mean over 100 subsets of 1,000, the published protocol; two sets of equal N up to 1,000 are compared as wholes.

    Args:
        a, b: features (N, D).
        seed: seed of the subsets.

    Raises:
        DataError: fewer than two features on a side, or other dims.
    """
    _check_pair(a, b)
    size = min(len(a), len(b), KERNEL_SUBSET_SIZE)
    subsets = 1 if size == len(a) == len(b) else KERNEL_SUBSETS
    result = kid_features_to_metric(
        _finite_double(a), _finite_double(b), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    return result[KEY_METRIC_KID_MEAN]


def inception_score(logits: Tensor, splits: int = INCEPTION_SCORE_SPLITS, seed: int = 2020) -> float:
    """Inception score (Salimans et al. 2016): mean over shuffled splits of exp(mean KL(p(y|x) || p(y))).

    Args:
        logits: (N, classes), the unbiased logits of the Inception network.
        splits: number of parts; the published figures use 10.
        seed: seed of the shuffle.

    Raises:
        DataError: fewer pictures than splits.
    """
    if len(logits) < splits:
        raise DataError(f"the inception score needs at least {splits} pictures, not {len(logits)}")
    return isc_features_to_metric(logits.cpu(), splits=splits, rng_seed=seed)[KEY_METRIC_ISC_MEAN]


def small_sample_warnings(dim: int, **counts: int) -> list[str]:
    """One line for each set (name=N) whose N is below the feature dimension, where covariances are singular."""
    return [
        f"{name.replace('_', ' ')}: N = {count} is below the {dim} feature dims, so the Frechet distance is biased "
        f"far upward: read it only against a floor of the same N"
        for name, count in counts.items()
        if count < dim
    ]


def nearest_neighbours(
    query_features: Tensor, reference_features: Tensor, k: int, chunk_size: int = 256
) -> tuple[Tensor, Tensor]:
    """The k nearest references of each query by Euclidean distance, nearest first, in tiles of bounded memory.

    Args:
        query_features: (Q, D).
        reference_features: (R, D).
        k: number of neighbours, at most R.
        chunk_size: queries in a tile.

    Returns:
        indices (Q, k) int64 into the references, and distances (Q, k) float32.

    Raises:
        DataError: k is not between 1 and R, or other dims.
    """
    _check_dims(query_features, reference_features)
    if not 1 <= k <= len(reference_features):
        raise DataError(f"k must be between 1 and the {len(reference_features)} references, not {k}")
    reference = reference_features.double()
    indices, distances = [], []
    for chunk in query_features.double().split(chunk_size):
        nearest = torch.cdist(chunk, reference).topk(k, largest=False)
        indices.append(nearest.indices)
        distances.append(nearest.values.float())
    return torch.cat(indices), torch.cat(distances)


def _finite_double(features: Tensor) -> Tensor:
    if not torch.isfinite(features).all():
        raise DataError("features contain NaN or infinity: the pictures or the feature network are damaged")
    return features.detach().to("cpu", torch.float64)


def _check_dims(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DataError(f"features must be (N, D) of equal D, not {tuple(a.shape)} and {tuple(b.shape)}")


def _check_pair(a: Tensor, b: Tensor) -> None:
    _check_dims(a, b)
    if min(len(a), len(b)) < 2:
        raise DataError(f"distances between distributions need at least 2 pictures a side, not {len(a)} and {len(b)}")
