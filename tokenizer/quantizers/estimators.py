"""Gradient estimators: the gradient that reaches the features through the choice of the nearest code.

Forward, each gives the codes' vectors to the bit. z + (e - z) would round them, and decode(codes) would differ from the
forward pass. Shapes: N features z, their vectors e, D dims.
"""

from __future__ import annotations

import torch

_EPSILON = 1e-6


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, vectors):
        return vectors.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, vectors):
        ctx.save_for_backward(features, vectors)
        return vectors.clone()

    @staticmethod
    def backward(ctx, gradient):
        features, vectors = ctx.saved_tensors
        length, target = features.norm(dim=1, keepdim=True), vectors.norm(dim=1, keepdim=True)
        u = features / length.clamp_min(_EPSILON)
        v = vectors / target.clamp_min(_EPSILON)
        bisector = u + v
        squared = bisector.square().sum(1, keepdim=True)
        # R = I - 2 b b' / |b|^2 + 2 v u', so R' g = g - 2 b (b.g) / |b|^2 + 2 u (v.g).
        turned = gradient - 2 * bisector * (bisector * gradient).sum(1, keepdim=True) / squared.clamp_min(_EPSILON)
        turned = turned + 2 * u * (v * gradient).sum(1, keepdim=True)
        # Where a direction is not defined, or the two are opposite, there is no such rotation: straight through.
        defined = (length > _EPSILON) & (target > _EPSILON) & (squared > _EPSILON)
        return torch.where(defined, turned * (target / length.clamp_min(_EPSILON)), gradient), None


def straight_through(features: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The vectors (N, D), with their gradient copied to the features (Bengio et al. 2013; van den Oord et al. 2017)."""
    return _StraightThrough.apply(features, vectors.detach())


def rotation(features: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The vectors (N, D), as a fixed rotation and scaling of the features, through which the gradient passes.

    The gradient keeps its angle to the vector: g becomes (|e| / |z|) R' g, where R turns z towards e. Features or
    vectors of length 0, and opposite ones, take the straight-through gradient.

    Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", eq. 4.
    """
    return _Rotation.apply(features, vectors.detach())


GRADIENT_ESTIMATORS = {"ste": straight_through, "rotation": rotation}
