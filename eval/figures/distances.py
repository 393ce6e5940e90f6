"""Distribution metrics from feature vectors: Frechet and kernel distance, inception score, real floor, neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from wvq.errors import DataError
from wvq.eval.features.networks import INCEPTION

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
INCEPTION_SCORE_SPLITS = 10
# Ending of a metric's name when it was measured at the floor's N instead of all pictures.
AT_FLOOR_N = "_at_floor_n"


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor


class FeatureStatistics:
    """Mean and covariance of feature vectors, streamed in float64.

    It keeps n, the sum and the sum of outer products, so statistics of parts (batches, processes) add up exactly.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Statistics of features (N, D)."""
        statistics = cls(features.shape[1])
        for chunk in features.split(4096):
            statistics.update(chunk)
        return statistics

    def update(self, features: Tensor) -> None:
        """Adds features (N, D).

        Raises:
            DataError: another D, or values that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.total):
            raise DataError(f"features must be (N, {len(self.total)}), not {tuple(features.shape)}")
        features = _finite_double(features)
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    def merge(self, other: FeatureStatistics) -> None:
        """Adds the statistics of a disjoint set of features."""
        self.count += other.count
        self.total += other.total
        self.outer += other.outer

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, divided by n - 1.

        Raises:
            DataError: fewer than two features.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 pictures, not {self.count}")
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


def metric_names(network_name: str) -> tuple[str, str]:
    """Names of the Frechet and of the kernel distance: FID and KID mean Inception features and nothing else."""
    return ("fid", "kid") if network_name == INCEPTION else (f"fd_{network_name}", f"kd_{network_name}")


def frechet_distance(a: FeatureStatistics | Moments | Tensor, b: FeatureStatistics | Moments | Tensor) -> float:
    """Squared Frechet distance between the Gaussians of two feature sets (FID, Heusel et al. 2017, equation 6).

    Biased upward at small N: compare only values of equal N.

    Args:
        a, b: features (N, D), their statistics, or moments that were stored.

    Raises:
        DataError: fewer than two features on a side, other dims, or values that are not finite.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        _check_pair(a, b)
        if max(len(a), len(b)) < a.shape[1]:
            return _frechet_distance_of_few(a, b)
    a, b = (FeatureStatistics.of(side) if isinstance(side, Tensor) else side for side in (a, b))
    if len(a.mean) != len(b.mean):
        raise DataError(f"features of two networks: {len(a.mean)} and {len(b.mean)} dims")
    sides = [{"mu": side.mean.numpy(), "sigma": side.covariance.numpy()} for side in (a, b)]
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

    Mean over 100 subsets of 1,000, the published protocol; two sets of equal N up to 1,000 are used whole, once.

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


def distribution_metrics(network_name: str, features: Tensor, reference: Tensor) -> dict[str, float]:
    """Frechet and kernel distance between two feature sets (N, D), under the names of the network."""
    _check_pair(features, reference)
    frechet, kernel = metric_names(network_name)
    return {frechet: frechet_distance(features, reference), kernel: kernel_distance(features, reference)}


def real_floor(network_name: str, features_a: Tensor, features_b: Tensor) -> dict[str, float]:
    """The same metrics between two disjoint sets of real pictures: what a perfect generator would get at this N.

    Args:
        network_name: name of the feature network.
        features_a, features_b: features (N, D) of disjoint real pictures, equal N.

    Raises:
        DataError: the sets differ in N: a floor holds for one N only.
    """
    if len(features_a) != len(features_b):
        raise DataError(f"a real floor needs two sets of equal N, not {len(features_a)} and {len(features_b)}")
    return distribution_metrics(network_name, features_a, features_b)


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
