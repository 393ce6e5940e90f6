"""Distances between the distribution of features and that of codes, and the moment window that they are measured over.

Gaussian distance: arXiv 2506.15078, the alignment of the paper. Sliced distance: ours; it assumes no shape of the
distribution. Gradients reach the codebook only: every feature-side value is detached.

Shapes: N features, K codes, D dims, P projections.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist

_EPSILON = 1e-10  # inside the outer square root, as published: a finite gradient at a perfect match


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    # D is small, so float64 costs nothing where the device has it, and keeps a collapsed covariance accurate.
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


class MomentWindow:
    """Mean and covariance over the most recent features, kept as one triple (n, sum, outer products) per batch.

    Holds the shortest run of recent batches with at least ``size`` features (all of them while it fills). Under several
    processes each triple is summed over all ranks, so every rank holds the moments of the joined batches; ranks must
    bring batches of equal size. Not part of the model's weights: a training checkpoint stores it by ``state_dict``.

    Args:
        size: number of features that the window covers; the paper uses 65,536.
    """

    def __init__(self, size: int = 65_536):
        self.size = size
        self._batches: deque[tuple[int, torch.Tensor]] = deque()
        self._total = 0

    def __len__(self) -> int:
        return self._total

    @torch.no_grad()
    def update(self, features: torch.Tensor, joined: bool = True) -> None:
        """Add one batch of features (N, D), joined with those of the other processes or this one's alone."""
        features = _wide(features.detach())
        world = _world_size() if joined else 1
        count, dim = len(features) * world, features.shape[1]
        packed = features.new_empty(dim + 1, dim)  # one tensor, so that one all-reduce makes it exact
        packed[0] = features.sum(0)
        packed[1:] = features.T @ features
        if world > 1:
            dist.all_reduce(packed)
        self._batches.append((count, packed))
        self._total += count
        while self._total - self._batches[0][0] >= self.size:
            self._total -= self._batches.popleft()[0]

    @torch.no_grad()
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (D,) and biased covariance (D, D) of all features in the window."""
        packed = torch.stack([packed for _, packed in self._batches]).sum(0) / self._total
        mean = packed[0]
        return mean, packed[1:] - torch.outer(mean, mean)

    def state_dict(self) -> dict:
        return {
            "counts": [count for count, _ in self._batches],
            "packed": [packed.cpu() for _, packed in self._batches],
        }

    def load_state_dict(self, state: dict, device: torch.device | str = "cpu") -> None:
        self._batches = deque(zip(state["counts"], [packed.to(device) for packed in state["packed"]], strict=True))
        self._total = sum(state["counts"])


def feature_scale(covariance: torch.Tensor) -> torch.Tensor:
    """The largest per-dimension standard deviation, by which features and codes are divided; a 0-d tensor > 0."""
    return covariance.diagonal().max().clamp_min(1e-12).sqrt()


def _root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def gaussian_wasserstein(
    mean: torch.Tensor, covariance: torch.Tensor, codebook: torch.Tensor, normalize: bool = True
) -> torch.Tensor:
    """2-Wasserstein distance between the Gaussian fits of features and codes (the distance, not its square).

    sqrt(|m_z - m_e|^2 + tr S_z + tr S_e - 2 tr (S_z^1/2 S_e S_z^1/2)^1/2 + 1e-10), S biased.

    Args:
        mean: (D,) feature mean; detached.
        covariance: (D, D) feature covariance; detached.
        codebook: (K, D); all codes count, used or not. Receives the gradient.
        normalize: divide both sides by ``feature_scale(covariance)``, so that the value has no unit.

    Returns:
        0-d tensor >= 1e-5, in the dtype of the codebook.

    Source: Dowson and Landau 1982; as a codebook loss arXiv 2506.15078.
    """
    with torch.autocast(codebook.device.type, enabled=False):
        mean, covariance, codes = _wide(mean.detach()), _wide(covariance.detach()), _wide(codebook)
        if normalize:
            scale = feature_scale(covariance)
            mean, covariance, codes = mean / scale, covariance / scale**2, codes / scale
        code_mean = codes.mean(0)
        centred = codes - code_mean
        code_covariance = centred.T @ centred / len(codes)
        root = _root(covariance)
        middle = root @ code_covariance @ root
        # Only eigenvalues of a symmetric matrix are needed: no eigenvector gradients, which explode for equal values.
        eigenvalues = torch.linalg.eigvalsh((middle + middle.T) / 2)
        # The small constant keeps the root's gradient finite where a codebook or the features have lost a dimension.
        cross = (eigenvalues.clamp_min(0) + 1e-12).sqrt().sum()
        bures = covariance.trace() + code_covariance.trace() - 2 * cross
        return ((mean - code_mean).square().sum() + bures.relu() + _EPSILON).sqrt().to(codebook.dtype)


def random_directions(count: int, dim: int, device: torch.device, joined: bool = True) -> torch.Tensor:
    """``count`` unit vectors (P, D), uniform on the sphere; if ``joined``, the same on every process."""
    directions = torch.randn(count, dim, device=device)
    if joined and _world_size() > 1:
        dist.broadcast(directions, src=0)
    return directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)


def gather_features(features: torch.Tensor) -> torch.Tensor:
    """The features (N, D) of all processes joined (W N, D), detached; batches must be of equal size."""
    features = features.detach().contiguous()
    if _world_size() == 1:
        return features
    joined = features.new_empty(_world_size() * len(features), features.shape[1])
    dist.all_gather_into_tensor(joined, features)
    return joined


def sliced_wasserstein(features: torch.Tensor, codebook: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Sliced 2-Wasserstein distance between features and codes, scaled by sqrt(D) to compare with the full distance.

    Along each direction the k-th smallest code is held against the feature quantile (k + 1/2) / K; the value is
    sqrt(D x mean squared difference over codes and directions + 1e-10). Both sides are divided by the largest
    per-dimension standard deviation of the features, so that the value has no unit.

    Args:
        features: (N, D); detached.
        codebook: (K, D); receives the gradient.
        directions: (P, D) unit vectors.

    Returns:
        0-d tensor, in the dtype of the codebook.

    Source: Rabin et al. 2011, Bonneel et al. 2015 for the sliced distance; its use as a codebook alignment is ours.
    """
    with torch.autocast(codebook.device.type, enabled=False):
        features, codes = features.detach().float(), codebook.float()
        scale = features.var(0, correction=0).max().clamp_min(1e-12).sqrt()
        projected_features = ((directions / scale) @ features.T).sort(dim=1).values  # P N
        projected_codes = ((directions / scale) @ codes.T).sort(dim=1).values  # P K
        count, num_codes = len(features), len(codes)
        # Linear interpolation between the order statistics on either side of each quantile.
        position = (torch.arange(num_codes, device=codes.device) + 0.5) * (count / num_codes) - 0.5
        position = position.clamp(0, count - 1)
        lower = position.long()
        upper = (lower + 1).clamp_max(count - 1)
        quantiles = torch.lerp(projected_features[:, lower], projected_features[:, upper], position - lower)
        squared = (projected_codes - quantiles).square().mean()
        return (squared * codes.shape[1] + _EPSILON).sqrt().to(codebook.dtype)
