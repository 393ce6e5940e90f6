"""Square roots of symmetric matrices that do not make the processor wait for the device, as torch's eigenvalues do.

Shapes: D dims, Y the root, Z the inverse root, W = Z Y the share of each eigenvector that has converged.
"""

from __future__ import annotations

import torch

# W of an eigenvalue of 1e-12 of the largest is past .43 after the first phase, and that of a rounded 0 is below .001.
_GROWING, _SETTLING = 35, 6


def iterates(matrix: torch.Tensor) -> bool:
    """Whether roots of this matrix are iterated: not on the CPU, where waiting for eigenvalues costs nothing.

    Not in float32 (Apple's devices), whose rounding would be taken for small eigenvalues.
    """
    return matrix.device.type != "cpu" and matrix.dtype == torch.float64


@torch.no_grad()
def symmetric_roots(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Square root (D, D) of a symmetric positive semi-definite matrix, and the pseudo-inverse of that root.

    A fixed number of products of matrices, no decision in between. First the coupled Newton-Schulz iteration
    Y <- Y (3 - W) / 2, Z <- (3 - W) Z / 2, under which W grows by 2.25 as long as it is small. Then
    Y <- Y (5 W - 3 W^2) / 2, and so for Z, under which W goes to 0 or 1 from either side of .43: what has not grown by
    then is the rounding of 0, which the first iteration alone would go on to enlarge.

    With eigenvalues of 1e-12 of the largest and more, or 0, the root is exact to about 1e-10 of its norm, as that of
    eigh is; those below 3e-13 count as 0. The inverse is as good as the smallest eigenvalue is known, and of a singular
    matrix exact to about 1e-4.

    Args:
        matrix: (D, D) float64.

    Source: Higham 2008, "Functions of Matrices", eq. 6.35 for the first phase; the second is new here.
    """
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    norm = matrix.square().sum().sqrt().clamp_min(1e-150)
    # At least the largest eigenvalue, and at most D^(1/32) times as much.
    power = torch.linalg.matrix_power(matrix / norm, 16)
    scale = norm * power.square().sum().clamp_min(1e-300) ** (1 / 32)
    root, inverse = matrix / scale, eye
    for _ in range(_GROWING):
        factor = torch.addmm(eye, inverse, root, beta=1.5, alpha=-0.5)
        root, inverse = root @ factor, factor @ inverse
    for _ in range(_SETTLING):
        share = inverse @ root
        factor = torch.addmm(share, share, share, beta=2.5, alpha=-1.5)
        root, inverse = root @ factor, factor @ inverse
    return (root + root.T) * (scale.sqrt() / 2), (inverse + inverse.T) / (2 * scale.sqrt())


class _RootTrace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix):
        root, inverse = symmetric_roots(matrix)
        ctx.save_for_backward(inverse)
        return root.trace()

    @staticmethod
    def backward(ctx, gradient):
        (inverse,) = ctx.saved_tensors
        return gradient * inverse / 2


def root_trace(matrix: torch.Tensor) -> torch.Tensor:
    """Trace (0-d) of the square root of a symmetric positive semi-definite matrix (D, D) float64; differentiable.

    Its gradient is half the pseudo-inverse of the root: 0 along eigenvalues that count as 0.
    """
    return _RootTrace.apply(matrix)
