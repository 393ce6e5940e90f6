"""Precision, recall, density and coverage: are samples like real pictures, and do they cover all real pictures?

Precision and recall: Kynkäänniemi et al. 2019 (arXiv 1904.06991), by torch-fidelity. Density and coverage: Naeem et al.
2020 (arXiv 2002.09797). All count pictures in balls that reach to a picture's k-th nearest neighbour: they depend on N
as much as the Frechet distance does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from wvq.errors import DataError

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
MOST = 10_000  # pictures a side: the published size, and the cost grows with its square
_TILE = 1_000


class Neighbourhoods(NamedTuple):
    """Figures of two sets that lie in each other's neighbourhoods.

    Attributes:
        precision: share of samples within the ball of some real picture (k = 3).
        recall: share of real pictures within the ball of some sample (k = 3).
        density: mean number of real balls (k = 5) that hold a sample, divided by k; may exceed 1.
        coverage: share of real pictures whose ball (k = 5) holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(features: Tensor, reference: Tensor) -> Neighbourhoods:
    """Precision, recall, density and coverage of samples against real pictures, the first 10,000 of each.

    Args:
        features: (N, D) of samples.
        reference: (M, D) of real pictures.

    Raises:
        DataError: other dims, or no more pictures on a side than neighbours.
    """
    features, reference = features[:MOST].float(), reference[:MOST].float()
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise DataError(f"features must be (N, D) of equal D, not {tuple(features.shape)} and {tuple(reference.shape)}")
    if min(len(features), len(reference)) <= DENSITY_NEIGHBOURS:
        raise DataError(
            f"neighbourhoods need more than {DENSITY_NEIGHBOURS} pictures a side, "
            f"not {len(features)} and {len(reference)}"
        )
    shares = prc_features_to_metric(  # generated first, real second
        features,
        reference,
        prc_neighborhood=PRECISION_NEIGHBOURS,
        prc_batch_size=_TILE,
        save_cpu_ram=True,
        verbose=False,
    )
    density, coverage = density_coverage(features, reference)
    return Neighbourhoods(shares[KEY_METRIC_PRECISION], shares[KEY_METRIC_RECALL], density, coverage)


def density_coverage(features: Tensor, reference: Tensor, k: int = DENSITY_NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage from features (N, D) of samples and (M, D) of real pictures, in tiles of bounded memory."""
    inside, covered = 0, 0
    for real in reference.split(_TILE):
        radii = torch.cdist(real, reference).kthvalue(k + 1).values  # the nearest one is the picture itself
        within = torch.cdist(real, features) < radii[:, None]  # tile N
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return inside / (k * len(features)), covered / len(reference)
