"""Roots of symmetric matrices by iteration agree with eigenvalues, whatever the spectrum."""

import pytest
import torch

from tests.tokenizer.quantizers.features import correlated, degenerate_inputs, moments
from wvq.tokenizer.quantizers import alignment
from wvq.tokenizer.quantizers.alignment import affine_map, gaussian_wasserstein
from wvq.tokenizer.quantizers.roots import root_trace, symmetric_roots

SPECTRA = {
    "all equal": [1.0] * 8,
    "repeated": [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5],
    "condition 1e4": torch.logspace(0, -4, 8).tolist(),
    "condition 1e8": torch.logspace(0, -8, 8).tolist(),
    "condition 1e12": torch.logspace(0, -12, 8).tolist(),
    "two clusters": [1.0] * 4 + [1e-12] * 4,
    "rank 3": [3.0, 2.0, 1.0] + [0.0] * 5,
    "rank 1": [1.0] + [0.0] * 7,
    "all at once": [1.0, 0.9, 0.9, 1e-3, 1e-6, 1e-9, 1e-12, 0.0],
    "64 dims": torch.logspace(0, -12, 64, dtype=torch.float64).tolist(),
    "64 dims of rank 20": torch.logspace(0, -3, 20).tolist() + [0.0] * 44,
    "one dim": [0.3],
}


def symmetric(values, seed=0):
    """A matrix of these eigenvalues, its eigenvectors, and the values."""
    values = torch.tensor(values, dtype=torch.float64)
    draws = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors, _ = torch.linalg.qr(draws)
    matrix = (vectors * values) @ vectors.T
    return (matrix + matrix.T) / 2, vectors, values


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_root_is_that_of_the_eigenvalues(name, scale):
    matrix, vectors, values = symmetric(SPECTRA[name])
    expected = scale**0.5 * (vectors * values.sqrt()) @ vectors.T
    root, inverse = symmetric_roots(scale * matrix)
    assert abs(root_trace(scale * matrix) - expected.trace()) < 1e-10 * expected.trace()
    # As eigh finds it, where what it makes of 0 is left out. It errs as well: the matrix itself is rounded.
    found, axes = torch.linalg.eigh(scale * matrix)
    found = torch.where(found > found.max() * len(found) * torch.finfo(found.dtype).eps, found, 0.0)
    by_eigh = (axes * found.sqrt()) @ axes.T
    tolerance = 1e-10 * expected.norm() + (by_eigh - expected).norm()
    assert (root - expected).norm() < tolerance
    assert (root - by_eigh).norm() < tolerance
    # The inverse is known as well as the smallest eigenvalue is: to rounding over it.
    least = values[values > 0].min()
    projector = (vectors * (values > 0)) @ vectors.T
    error = (inverse @ root - projector).norm()
    assert error < 1e-14 * len(values) * (values.max() / least) + 1e-4 * (values == 0).any()


@pytest.mark.parametrize("name", ["repeated", "condition 1e4", "condition 1e8", "rank 3"])
def test_the_gradient_is_half_the_inverse_root(name):
    matrix, vectors, values = symmetric(SPECTRA[name])
    matrix.requires_grad_()
    root_trace(matrix).backward()
    inverse = torch.where(values > 0, values.clamp_min(1e-300).rsqrt(), 0.0)
    expected = (vectors * inverse) @ vectors.T / 2
    assert (matrix.grad - expected).norm() < (1e-4 if name == "rank 3" else 1e-8) * expected.norm()
    if name == "repeated":
        assert torch.autograd.gradcheck(lambda x: root_trace((x + x.T) / 2), matrix.detach().requires_grad_())


def test_a_matrix_of_zeros_has_the_root_zero():
    for values in symmetric_roots(torch.zeros(4, 4, dtype=torch.float64)):
        assert torch.equal(values, torch.zeros(4, 4, dtype=torch.float64))


@pytest.fixture
def iterated(monkeypatch):
    """A function that calls another with eigenvalues, and with the iteration of a GPU."""

    def both(call):
        expected = call()
        monkeypatch.setattr(alignment, "iterates", lambda matrix: True)
        found = call()
        monkeypatch.undo()
        return found, expected

    return both


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", [1, 4, 8, 32])
def test_the_distance_of_a_gpu_is_that_of_the_cpu(iterated, dim, normalize):
    mean, covariance = moments(correlated(2_000, dim, shift=1.0))
    codebook = (0.01 * correlated(500, dim, seed=1)).requires_grad_()

    def call():
        distance = gaussian_wasserstein(mean, covariance, codebook, normalize, 1.3)
        return distance.detach(), torch.autograd.grad(distance, codebook)[0]

    (value, gradient), (expected, expected_gradient) = iterated(call)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9 * expected_gradient.abs().max().item())


@pytest.mark.parametrize("name", degenerate_inputs())
def test_degenerate_features_and_codes(iterated, name):
    features, codes = degenerate_inputs()[name]
    codes = codes.clone().requires_grad_()

    def call():
        distance = gaussian_wasserstein(*moments(features), codes)
        return distance.detach(), torch.autograd.grad(distance, codes)[0]

    (value, gradient), (expected, _) = iterated(call)
    # Where the distance is 0 its square is a difference of equal numbers.
    torch.testing.assert_close(value.square(), expected.square(), rtol=1e-7, atol=1e-7)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("flat", "tolerance"), [(False, 1e-9), (True, 2e-4)])
def test_the_affine_map_of_a_gpu_is_that_of_the_cpu(iterated, flat, tolerance):
    mean, covariance = moments(correlated(2_000, 8, shift=1.0))
    codebook = 0.01 * correlated(500, 8, seed=1)
    if flat:
        codebook[:, 7] = codebook[:, 6]  # a direction without spread
    found, expected = iterated(lambda: affine_map(mean, covariance, codebook))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
