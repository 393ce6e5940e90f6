"""Distances between the distribution of features and that of codes, and the moment window of recent features.

Gaussian distance: arXiv 2506.15078, the alignment of the paper. Sliced distance: new here; it assumes no shape of the
distribution. MMD and the affine map: controls. Gradients reach the codebook only: every feature-side value is detached.

Shapes: N features, K codes, D dims, P projections.
"""

from __future__ import annotations

from collections import deque

import torch

from wvq.distributed import from_first_process, sum_over_processes, world_size
from wvq.tokenizer.quantizers.roots import iterates, root_trace, symmetric_roots

_EPSILON = 1e-10  # inside the outer square root, as published: a finite gradient at a perfect match


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    # D is small, so float64 costs nothing where the device has it, and keeps a collapsed covariance accurate.
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def packed_sums(features: torch.Tensor) -> torch.Tensor:
    """Count, sum and outer products of features (N, D) as one tensor (D + 2, D), which may be added up over batches.

    In float64 where the device has it.
    """
    wide = _wide(features.detach())
    packed = wide.new_empty(wide.shape[1] + 2, wide.shape[1])
    packed[0] = len(wide)
    packed[1] = wide.sum(0)
    packed[2:] = wide.T @ wide
    return packed


def packed_moments(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (D,) and biased covariance (D, D) of all features that :func:`packed_sums` (D + 2, D) were added up of."""
    shares = packed / packed[0].clamp_min(1)
    mean = shares[1]
    return mean, shares[2:] - torch.outer(mean, mean)


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
        self._batches: deque[tuple[int, torch.Tensor]] = deque()  # what each batch counts for, and (D + 2, D)
        self._total = 0

    def __len__(self) -> int:
        return self._total

    @torch.no_grad()
    def update(self, features: torch.Tensor, joined: bool = True) -> None:
        """Add one batch of features (N, D), joined with those of the other processes or this one's alone.

        A batch with NaN or infinite features counts as empty, so that one bad step does not spoil the next ones.
        """
        count = len(features) * (world_size() if joined else 1)
        packed = packed_sums(features)
        if joined:
            sum_over_processes(packed)
        packed = torch.where(packed.isfinite().all(), packed, 0.0)
        self._batches.append((count, packed))
        self._total += count
        while self._total - self._batches[0][0] >= self.size:
            self._total -= self._batches.popleft()[0]

    def last_counted(self) -> torch.Tensor:
        """Whether the latest batch was finite: a 0-d tensor of bool, so that the call does not wait for the device."""
        return self._batches[-1][1][0, 0] > 0

    @torch.no_grad()
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (D,) and biased covariance (D, D) of all features in the window."""
        return packed_moments(torch.stack([packed for _, packed in self._batches]).sum(0))

    def state_dict(self) -> dict:
        """The state of an exact resume."""
        return {
            "counts": [count for count, _ in self._batches],
            "packed": [packed.cpu() for _, packed in self._batches],
        }

    def load_state_dict(self, state: dict, device: torch.device | str = "cpu") -> None:
        """Restore the state that :meth:`state_dict` gave."""
        self._batches = deque(zip(state["counts"], [packed.to(device) for packed in state["packed"]], strict=True))
        self._total = sum(state["counts"])


def feature_scale(covariance: torch.Tensor) -> torch.Tensor:
    """The largest per-dimension standard deviation, by which features and codes are divided; a 0-d tensor > 0."""
    return covariance.diagonal().max().clamp_min(1e-12).sqrt()


def _root(matrix: torch.Tensor) -> torch.Tensor:
    if iterates(matrix):
        return symmetric_roots(matrix)[0]
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _root_trace(matrix: torch.Tensor) -> torch.Tensor:
    """Trace of the root of a symmetric matrix, with its gradient."""
    if iterates(matrix):
        return root_trace(matrix)
    # Only eigenvalues are needed: no eigenvector gradients, which explode for equal values.
    eigenvalues = torch.linalg.eigvalsh(matrix)
    # Where codebook or features have lost a dimension, only rounding is left of its eigenvalue: 0, with gradient 0.
    floor = eigenvalues.detach().max() * len(matrix) * torch.finfo(eigenvalues.dtype).eps + 1e-300
    return torch.where(eigenvalues > floor, eigenvalues.clamp_min(floor).sqrt(), 0.0).sum()


def _roots(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Root of a symmetric matrix, and the pseudo-inverse of that."""
    if iterates(matrix):
        return symmetric_roots(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    spread = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    roots = values.clamp_min(0).sqrt()
    inverse = torch.where(spread, 1 / roots.clamp_min(1e-300), 0.0)
    return (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T


class _Moments(torch.autograd.Function):
    # Mean and biased covariance of points (K, D) in float64. Written out, because automatic differentiation would keep
    # and multiply several float64 matrices of K x D.
    @staticmethod
    def forward(ctx, points):
        wide = _wide(points)
        mean = wide.mean(0)
        centred = wide - mean
        ctx.save_for_backward(centred)
        ctx.dtype = points.dtype
        return mean, centred.T @ centred / len(points)

    @staticmethod
    def backward(ctx, mean_gradient, covariance_gradient):
        (centred,) = ctx.saved_tensors
        gradient = centred @ (covariance_gradient + covariance_gradient.T) + mean_gradient
        return (gradient / len(centred)).to(ctx.dtype)


class _Trace(torch.autograd.Function):
    # Trace of a matrix (D, D). The gradient of torch's own reads a number from the device, which the processor awaits.
    @staticmethod
    def forward(ctx, matrix):
        ctx.dim = len(matrix)
        return matrix.trace()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.expand(ctx.dim).diag_embed()


def gaussian_wasserstein(
    mean: torch.Tensor,
    covariance: torch.Tensor,
    codebook: torch.Tensor,
    normalize: bool = True,
    target_scale: float = 1.0,
) -> torch.Tensor:
    """2-Wasserstein distance between the Gaussian fits of features and codes (the distance, not its square).

    sqrt(|m_z - m_e|^2 + tr S_z + tr S_e - 2 tr (S_z^1/2 S_e S_z^1/2)^1/2 + 1e-10), S biased.

    Args:
        mean: (D,) feature mean; detached.
        covariance: (D, D) feature covariance; detached.
        codebook: (K, D); all codes count, used or not. Receives the gradient.
        normalize: divide both sides by ``feature_scale(covariance)``, so that the value has no unit.
        target_scale: tau > 0; codes are compared with tau^2 S_z.

    Returns:
        0-d tensor >= 1e-5, in the dtype of the codebook.

    Source: Dowson and Landau 1982; as a codebook loss arXiv 2506.15078.
    """
    with torch.autocast(codebook.device.type, enabled=False):
        mean, covariance = _wide(mean.detach()), _wide(covariance.detach())
        code_mean, code_covariance = _Moments.apply(codebook)
        if normalize:
            scale = feature_scale(covariance)
            mean, covariance = mean / scale, covariance / scale**2
            code_mean, code_covariance = code_mean / scale, code_covariance / scale**2
        covariance = covariance * target_scale**2
        root = _root(covariance)
        middle = root @ code_covariance @ root
        cross = _root_trace((middle + middle.T) / 2)
        bures = covariance.trace() + _Trace.apply(code_covariance) - 2 * cross
        return ((mean - code_mean).square().sum() + bures.relu() + _EPSILON).sqrt().to(codebook.dtype)


def random_directions(count: int, dim: int, device: torch.device, joined: bool = True) -> torch.Tensor:
    """``count`` unit vectors (P, D), uniform on the sphere; if ``joined``, the same on every process."""
    directions = torch.randn(count, dim, device=device)
    if joined:
        directions = from_first_process(directions)
    return directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)


def random_sample(points: torch.Tensor, count: int, joined: bool = True) -> torch.Tensor:
    """At most ``count`` of the points (N, D), without repetition; if ``joined``, the same ones on every process."""
    if len(points) <= count:
        return points
    order = torch.randperm(len(points), device=points.device)
    return points[(from_first_process(order) if joined else order)[:count]]


def sliced_wasserstein(
    features: torch.Tensor,
    codebook: torch.Tensor,
    directions: torch.Tensor,
    normalize: bool = True,
    target_scale: float = 1.0,
    robust: float | None = None,
) -> torch.Tensor:
    """Sliced 2-Wasserstein distance between features and codes, scaled by sqrt(D) to compare with the full distance.

    Along each direction the k-th smallest code is compared with the feature quantile (k + 1/2) / K; the value is
    sqrt(D x mean cost + 1e-10), the mean taken over codes and directions. The cost of a difference r is r^2, or with
    ``robust`` = c the pseudo-Huber cost 2 s^2 (sqrt(1 + (r / s)^2) - 1), s = c times the features' largest standard
    deviation: r^2 for small r, 2 s |r| for large ones. Where features have several modes, the share of each mode in a
    batch is never quite right, and the codes next to a gap are sent across it now and then; squared, those few long
    ways outweigh all others and leave codes in the gap.

    Args:
        features: (N, D); detached.
        codebook: (K, D); receives the gradient.
        directions: (P, D) unit vectors.
        normalize: divide both sides by the largest per-dimension standard deviation of the features, so that the value
            has no unit.
        target_scale: tau > 0; features are widened by it about their mean.
        robust: c > 0 of the pseudo-Huber cost; None is the exact squared distance.

    Returns:
        0-d tensor, in the dtype of the codebook.

    Source: Rabin et al. 2011, Bonneel et al. 2015 for the sliced distance; its use as a codebook alignment is new here.
    """
    with torch.autocast(codebook.device.type, enabled=False):
        features, codes = features.detach().float(), codebook.float()
        scale = features.var(0, correction=0).max().clamp_min(1e-12).sqrt()
        if normalize:
            directions = directions / scale
        projected_features = (directions @ features.T).sort(dim=1).values  # P N
        projected_codes = (directions @ codes.T).sort(dim=1).values  # P K
        if target_scale != 1:
            centre = (directions @ features.mean(0))[:, None]
            projected_features = centre + target_scale * (projected_features - centre)
        difference = projected_codes - _quantiles(projected_features, len(codes))
        if robust is None:
            cost = difference.square()
        else:
            knee = robust * (1.0 if normalize else scale)
            cost = 2 * knee**2 * ((1 + (difference / knee).square()).sqrt() - 1)
        return (cost.mean() * codes.shape[1] + _EPSILON).sqrt().to(codebook.dtype)


def _quantiles(values: torch.Tensor, count: int) -> torch.Tensor:
    # At the levels (k + 1/2) / count of sorted values (P, N), where the i-th value sits at the level (i + 1/2) / N:
    # linear interpolation between the order statistics on either side.
    size = values.shape[1]
    position = (torch.arange(count, device=values.device) + 0.5) * (size / count) - 0.5
    position = position.clamp(0, size - 1)
    lower = position.long()
    upper = (lower + 1).clamp_max(size - 1)
    return torch.lerp(values[:, lower], values[:, upper], position - lower)


def mmd(features: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Squared maximum mean discrepancy between features and codes, biased, with two Gaussian kernels.

    Kernels exp(-s / b) and exp(-s / 2b) of the squared distance s over sqrt(D), where b is the mean of s over all pairs
    of different points (detached). Builds (N + K)^2 values: draw a sample first.

    Args:
        features: (N, D); detached.
        codebook: (K, D); receives the gradient.

    Returns:
        0-d tensor, in the dtype of the codebook.

    Source: Gretton et al. 2012; as a codebook alignment arXiv 2506.15078 (2026 revision).
    """
    with torch.autocast(codebook.device.type, enabled=False):
        points = torch.cat([features.detach().float(), codebook.float()])
        count, total = len(features), len(points)
        squares = points.square().sum(1)
        squared = (squares[:, None] + squares - 2 * points @ points.T).clamp_min(0) / points.shape[1] ** 0.5
        width = (squared.detach().sum() / max(1, total * (total - 1))).clamp_min(1e-12)
        wide = (-squared / (2 * width)).exp()
        kernel = wide + wide.square()  # the narrow kernel is the square of the wide one
        within = kernel[:count, :count].mean() + kernel[count:, count:].mean()
        return (within - 2 * kernel[:count, count:].mean()).to(codebook.dtype)


@torch.no_grad()
def affine_map(
    mean: torch.Tensor, covariance: torch.Tensor, codebook: torch.Tensor, target_scale: float = 1.0
) -> torch.Tensor:
    """Codes (K, D) carried by the optimal-transport map between the Gaussian fits of codes and features.

    e <- m_z + A (e - m_e) with A = S_e^-1/2 (S_e^1/2 S_z S_e^1/2)^1/2 S_e^-1/2: afterwards mean and covariance of the
    codes are those of the features, as far as the codes span them. Directions without any spread among the codes stay
    without.

    Args:
        mean, covariance: (D,) and (D, D) of the features.
        codebook: (K, D).
        target_scale: tau > 0; codes are carried to tau^2 S_z.

    Source: Peyré and Cuturi 2019, eq. 2.40.
    """
    codes = _wide(codebook)
    code_mean = codes.mean(0)
    centred = codes - code_mean
    root, inverse_root = _roots(centred.T @ centred / len(codes))
    middle = root @ (_wide(covariance) * target_scale**2) @ root
    transport = inverse_root @ _root((middle + middle.T) / 2) @ inverse_root
    return (_wide(mean) + centred @ transport).to(codebook.dtype)
