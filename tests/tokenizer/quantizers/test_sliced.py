"""Sliced distance and mean discrepancy: values, gradients, degenerate inputs, what each distance can align."""

import math

import numpy as np
import pytest
import torch

from tests.tokenizer.quantizers.features import correlated, degenerate_inputs, generator, moments
from wvq.distributed import gather_rows
from wvq.tokenizer.quantizers.alignment import (
    gaussian_wasserstein,
    mmd,
    random_directions,
    random_sample,
    sliced_wasserstein,
)
from wvq.tokenizer.quantizers.nearest import nearest_codes
from wvq.tokenizer.quantizers.statistics import CodeStatistics


def points(count, dim, seed=0):
    return correlated(count, dim, seed).float()


def unit_directions(count, dim, seed=0):
    directions = torch.randn(count, dim, generator=generator(seed))
    return directions / directions.norm(dim=1, keepdim=True)


def test_sliced_equals_numpy():
    features, codebook = points(40, 3), points(40, 3, seed=9)
    directions = unit_directions(7, 3)
    scale = features.numpy().std(0).max()
    a = np.sort(directions.numpy() @ features.numpy().T / scale)
    b = np.sort(directions.numpy() @ codebook.numpy().T / scale)
    expected = np.sqrt(3 * np.mean((a - b) ** 2) + 1e-10)
    assert sliced_wasserstein(features, codebook, directions).item() == pytest.approx(expected, rel=1e-5)


def test_sliced_interpolates_between_order_statistics():
    features = torch.tensor([[4.0], [0.0], [1.0], [3.0]])
    codebook = torch.tensor([[2.0], [0.0]])  # quantiles 1/4 and 3/4 lie halfway: 0.5 and 3.5
    scale = features.std(correction=0).item()
    expected = (((0.0 - 0.5) ** 2 + (2.0 - 3.5) ** 2) / 2) ** 0.5 / scale
    assert sliced_wasserstein(features, codebook, torch.ones(1, 1)).item() == pytest.approx(expected, rel=1e-5)


def test_sliced_with_more_codes_than_features():
    features, codebook = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    # Positions -1/4, 1/4, 3/4, 5/4 in the order statistics, held at their ends.
    expected = ((0.25**2 + 0.25**2) / 4) ** 0.5 / 0.5
    assert sliced_wasserstein(features, codebook, torch.ones(1, 1)).item() == pytest.approx(expected, rel=1e-5)


def test_sliced_is_zero_on_equal_sets():
    features = points(200, 5)
    shuffled = features[torch.randperm(200, generator=generator())]
    assert sliced_wasserstein(features, shuffled, unit_directions(16, 5)).item() == pytest.approx(1e-5, abs=1e-5)


def test_sliced_of_a_translation_is_its_length():
    features = torch.randn(300, 6, generator=generator())
    shift = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3, 0.1])
    scale = features.std(0, correction=0).max().item()
    # Averaged over an orthonormal basis the squared projections sum to the squared length.
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator(1))).Q
    value = sliced_wasserstein(features, features + shift, basis)
    assert value.item() == pytest.approx(shift.norm().item() / scale, rel=1e-5)


def test_sliced_agrees_with_the_gaussian_distance_between_isotropic_gaussians():
    features = torch.randn(4096, 4, generator=generator())
    codebook = 0.5 * torch.randn(4096, 4, generator=generator(1)) + 0.3
    full = gaussian_wasserstein(*moments(features), codebook)
    sliced = sliced_wasserstein(features, codebook, unit_directions(200, 4))
    assert sliced.item() == pytest.approx(full.item(), rel=0.03)


def test_sliced_has_no_unit():
    features, codebook, directions = points(90, 4), points(30, 4, seed=2), unit_directions(8, 4)
    value = sliced_wasserstein(features, codebook, directions)
    assert sliced_wasserstein(100 * features, 100 * codebook, directions).item() == pytest.approx(
        value.item(), rel=1e-5
    )


def test_sliced_gradient_equals_finite_differences_and_reaches_the_codebook_only():
    features, directions = points(60, 3).requires_grad_(), unit_directions(5, 3)
    codebook = points(10, 3, seed=4).requires_grad_()
    sliced_wasserstein(features, codebook, directions).backward()
    assert features.grad is None
    for k, d in [(0, 0), (4, 2), (9, 1)]:
        step = torch.zeros_like(codebook)
        step[k, d] = 1e-2
        with torch.no_grad():
            up = sliced_wasserstein(features, codebook + step, directions)
            down = sliced_wasserstein(features, codebook - step, directions)
        assert codebook.grad[k, d].item() == pytest.approx((up - down).item() / 2e-2, rel=0.05, abs=2e-4)


@pytest.mark.parametrize("case", degenerate_inputs())
def test_sliced_is_finite_on_degenerate_inputs(case):
    features, codebook = (x.float() for x in degenerate_inputs()[case])
    codebook.requires_grad_()
    value = sliced_wasserstein(features, codebook, unit_directions(8, 4))
    value.backward()
    assert 1e-5 * (1 - 1e-6) <= value.item() < float("inf")
    assert torch.isfinite(codebook.grad).all()


def test_sliced_is_computed_in_float32_under_autocast():
    features, codebook, directions = points(90, 4), points(30, 4, seed=2), unit_directions(8, 4)
    value = sliced_wasserstein(features, codebook, directions)
    with torch.autocast("cpu", torch.bfloat16):
        assert sliced_wasserstein(features, codebook, directions).item() == value.item()


def test_directions_are_unit_and_follow_the_seed():
    torch.manual_seed(3)
    directions = random_directions(500, 4, torch.device("cpu"))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(500))
    assert directions.mean(0).abs().max() < 0.1
    torch.manual_seed(3)
    assert torch.equal(random_directions(500, 4, torch.device("cpu")), directions)


def numpy_quantiles(values, count):
    levels = (np.arange(len(values)) + 0.5) / len(values)
    return np.interp((np.arange(count) + 0.5) / count, levels, np.sort(values))


@pytest.mark.parametrize("robust", [None, 0.25, 2.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("target_scale", [1.0, 0.7, 2.0])
def test_sliced_of_sets_of_any_size_equals_numpy(robust, normalize, target_scale):
    features, codebook, directions = points(90, 3), points(25, 3, seed=9), unit_directions(6, 3)
    x, codes = features.double().numpy(), codebook.double().numpy()
    spread = x.std(0).max()
    x = x.mean(0) + target_scale * (x - x.mean(0))
    costs = []
    for direction in directions.double().numpy():
        difference = np.sort(codes @ direction) - numpy_quantiles(x @ direction, 25)
        difference = difference / spread if normalize else difference
        knee = robust and robust * (1.0 if normalize else spread)
        huber = robust and 2 * knee**2 * (np.sqrt(1 + (difference / knee) ** 2) - 1)
        costs.append(np.mean(difference**2 if robust is None else huber))
    value = sliced_wasserstein(features, codebook, directions, normalize, target_scale, robust)
    assert value.item() == pytest.approx(math.sqrt(3 * np.mean(costs)), rel=1e-4)


def moved(features, distance, **options):
    """The sliced distance between one-dimensional features and the same ones moved."""
    return sliced_wasserstein(features, features + distance, torch.ones(1, 1), **options).item()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_robust_cost_is_squared_for_small_differences_and_linear_for_large_ones(normalize):
    features = 3 * torch.randn(400, 1, generator=generator())
    spread = features.std(correction=0).item()
    knee = 0.25 * (1 if normalize else spread)
    small = 0.02 * spread
    plain = moved(features, small, normalize=normalize)
    assert moved(features, small, normalize=normalize, robust=0.25) == pytest.approx(plain, rel=0.01)
    lengths = [500.0, 1000.0]
    first, second = (moved(features, length * spread, normalize=normalize, robust=0.25) ** 2 for length in lengths)
    slope = (second - first) / ((lengths[1] - lengths[0]) * (1 if normalize else spread))
    assert slope == pytest.approx(2 * knee, rel=1e-3)


@pytest.mark.parametrize("robust", [None, 0.25])
def test_the_robust_distance_has_no_unit(robust):
    features, codebook, directions = points(90, 4), points(30, 4, seed=2), unit_directions(8, 4)
    value = sliced_wasserstein(features, codebook, directions, robust=robust).item()
    larger = sliced_wasserstein(100 * features, 100 * codebook, directions, robust=robust).item()
    plain = sliced_wasserstein(features, codebook, directions, normalize=False, robust=robust).item()
    assert larger == pytest.approx(value, rel=1e-4)
    assert plain == pytest.approx(value * features.std(0, correction=0).max().item(), rel=1e-4)


@pytest.mark.parametrize("robust", [None, 0.25])
def test_a_target_scale_widens_the_features_about_their_mean(robust):
    features = points(60, 3) + 5
    wide = features.mean(0) + 2 * (features - features.mean(0))
    directions = unit_directions(8, 3)
    matched = sliced_wasserstein(features, wide, directions, target_scale=2.0, robust=robust)
    assert matched.item() == pytest.approx(0, abs=1e-4)
    assert sliced_wasserstein(features, wide, directions, robust=robust).item() > 0.3


@pytest.mark.parametrize("robust", [None, 0.25])
@pytest.mark.parametrize("normalize", [True, False])
def test_sliced_gradient_of_any_cost_equals_finite_differences(robust, normalize):
    features, directions = points(60, 3), unit_directions(5, 3)
    codebook = points(10, 3, seed=4).requires_grad_()

    def value(codes):
        return sliced_wasserstein(features, codes, directions, normalize, 1.5, robust)

    value(codebook).backward()
    with torch.no_grad():
        steps = 4e-3 * torch.eye(30).view(30, 10, 3)
        expected = torch.stack([(value(codebook + step) - value(codebook - step)) / 8e-3 for step in steps])
    assert (codebook.grad.flatten() - expected).norm() < 0.02 * expected.norm()


# ---- maximum mean discrepancy


def numpy_mmd(features, codes):
    """By its definition, pair by pair, in float64."""
    points = np.concatenate([features, codes])
    squared = np.array([[np.sum((a - b) ** 2) for b in points] for a in points]) / math.sqrt(points.shape[1])
    total, count = len(points), len(features)
    width = sum(squared[i, j] for i in range(total) for j in range(total) if i != j) / (total * (total - 1))
    kernel = np.exp(-squared / width) + np.exp(-squared / (2 * width))
    return kernel[:count, :count].mean() + kernel[count:, count:].mean() - 2 * kernel[:count, count:].mean(), width


@pytest.mark.parametrize(("count", "num_codes", "dim"), [(30, 20, 1), (20, 30, 4), (40, 1, 3), (25, 25, 32)])
def test_mmd_equals_its_definition(count, num_codes, dim):
    features, codebook = points(count, dim), points(num_codes, dim, seed=5) + 0.5
    expected, _ = numpy_mmd(features.double().numpy(), codebook.double().numpy())
    assert expected > 0.01
    assert mmd(features, codebook).item() == pytest.approx(expected, rel=1e-4)


def test_mmd_of_equal_sets_is_zero():
    features = points(50, 4)
    assert mmd(features, features.flip(0)).item() == pytest.approx(0, abs=1e-6)
    assert mmd(features, features + 1).item() > 0.01


def test_mmd_gradient_equals_finite_differences_with_the_width_held():
    features, codebook = points(25, 3), (points(10, 3, seed=5) + 0.5).requires_grad_()
    mmd(features, codebook).backward()
    _, width = numpy_mmd(features.double().numpy(), codebook.detach().double().numpy())
    x = features.double()

    def value(codes):
        def kernel(a, b):
            squared = (a[:, None] - b[None]).square().sum(-1) / 3**0.5
            return ((-squared / width).exp() + (-squared / (2 * width)).exp()).mean()

        return kernel(x, x) + kernel(codes, codes) - 2 * kernel(x, codes)

    codes = codebook.detach().double()
    steps = 1e-5 * torch.eye(30, dtype=torch.float64).view(30, 10, 3)
    expected = torch.stack([(value(codes + step) - value(codes - step)) / 2e-5 for step in steps])
    assert (codebook.grad.flatten() - expected).norm() < 1e-4 * expected.norm()


def test_mmd_reaches_the_codes_only():
    features, codebook = points(30, 3).requires_grad_(), points(10, 3, seed=5).requires_grad_()
    mmd(features, codebook).backward()
    assert features.grad is None
    assert codebook.grad.abs().min() > 0


@pytest.mark.parametrize("case", degenerate_inputs())
def test_mmd_is_finite_on_degenerate_inputs(case):
    features, codebook = (x.float() for x in degenerate_inputs()[case])
    codebook.requires_grad_()
    value = mmd(features, codebook)
    value.backward()
    assert -1e-6 < value.item() < 4
    assert torch.isfinite(codebook.grad).all()


# ---- samples


def test_a_sample_is_a_subset_without_repetition_that_follows_the_seed():
    points = torch.arange(100.0)[:, None]
    torch.manual_seed(4)
    sample = random_sample(points, 30)
    assert sample.shape == (30, 1)
    assert len(sample.unique()) == 30
    assert not torch.equal(sample, random_sample(points, 30))
    torch.manual_seed(4)
    assert torch.equal(sample, random_sample(points, 30))
    assert torch.equal(random_sample(points, 100), points)
    assert torch.equal(random_sample(points[:7], 30), points[:7])


def test_rows_of_one_process_are_its_own():
    features = points(5, 2).requires_grad_()
    assert torch.equal(gather_rows(features), features)
    assert not gather_rows(features).requires_grad


# ---- what each distance can align


def bimodal(count, dim, zeta, seed):
    side = torch.randint(0, 2, (count, 1), generator=generator(seed)) * 2 - 1
    return torch.randn(count, dim, generator=generator(seed + 1)) + zeta * side


def align(method, zeta, dim, num_codes, count, steps, lr=3.0):
    """E and U on fresh features after codes were drawn to bimodal features: SGD on 0.1 commitment + 10 distance."""
    codebook = torch.randn(num_codes, dim, generator=generator(99)).requires_grad_()
    optimizer = torch.optim.SGD([codebook], lr=lr, momentum=0.9)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        features = bimodal(count, dim, zeta, seed=2 * step)
        if method == "sliced":
            distance = sliced_wasserstein(features, codebook, unit_directions(16, dim, seed=step))
            distance = distance * features.std(0).max()  # in the unit of the features, as its rival
        else:
            distance = gaussian_wasserstein(*moments(features), codebook, normalize=False)
        commitment = (features - codebook[nearest_codes(features, codebook)]).square().sum(1).mean()
        optimizer.zero_grad()
        (0.1 * commitment + 10 * distance).backward()
        optimizer.step()
    features = bimodal(4 * count, dim, zeta, seed=10**6)
    codes = nearest_codes(features, codebook)
    statistics = CodeStatistics(num_codes)
    statistics.update(codes, (features - codebook[codes]).detach().square().sum(1).mean())
    result = statistics.compute()
    return result["quantization_error"], result["utilization"]


def test_sliced_follows_two_modes_where_the_gaussian_does_not():
    setup = {"zeta": 4.0, "dim": 4, "num_codes": 128, "count": 2048, "steps": 150, "lr": 1.0}
    sliced_error, sliced_use = align("sliced", **setup)
    gaussian_error, gaussian_use = align("gaussian", **setup)
    assert sliced_use > 0.95
    assert gaussian_use < 0.6
    assert sliced_error < 0.8 * gaussian_error


@pytest.mark.study
def test_bimodal_study():
    """The comparison of sliced and Gaussian alignment on two modes at a distance of 2 zeta, d 8, K 2,048."""
    results = {
        (method, zeta): align(method, zeta, dim=8, num_codes=2048, count=16_384, steps=200, lr=8.0)
        for zeta in (0.0, 2.0, 4.0)
        for method in ("sliced", "gaussian")
    }
    for (method, zeta), (error, use) in results.items():
        print(f"{method:>8} zeta {zeta:g}: E {error:.3f}, U {use:.3f}")
    assert all(results["sliced", zeta][1] > 0.95 for zeta in (0.0, 2.0, 4.0))
    assert results["sliced", 0.0][0] < 1.05 * results["gaussian", 0.0][0]
    for zeta in (2.0, 4.0):
        assert results["sliced", zeta][0] < 0.9 * results["gaussian", zeta][0]
        assert results["sliced", zeta][1] > results["gaussian", zeta][1] + 0.2
