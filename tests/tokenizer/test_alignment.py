"""Wasserstein distances and the moment window: values, gradients, degenerate inputs, what each can align."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from wvq.tokenizer.alignment import (
    MomentWindow,
    feature_scale,
    gather_features,
    gaussian_wasserstein,
    random_directions,
    sliced_wasserstein,
)
from wvq.tokenizer.metrics import CodeStatistics
from wvq.tokenizer.nearest import nearest_codes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated(count, dim, seed=0, scale=1.0, shift=0.0):
    """Features with a full random covariance."""
    draws = torch.randn(count, dim, generator=generator(seed), dtype=torch.float64)
    mix = torch.randn(dim, dim, generator=generator(seed + 100), dtype=torch.float64)
    return scale * draws @ mix + shift


def moments(features):
    features = features.double()
    centred = features - features.mean(0)
    return features.mean(0), centred.T @ centred / len(features)


def scipy_distance(mean, covariance, codebook, normalize=True):
    scale = float(covariance.diagonal().max()) ** 0.5 if normalize else 1.0
    mean, covariance, codes = mean.numpy() / scale, covariance.numpy() / scale**2, codebook.double().numpy() / scale
    code_covariance = np.cov(codes, rowvar=False, bias=True).reshape(covariance.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)  # singular matrices are among the cases
        root = scipy.linalg.sqrtm(covariance).real
        cross = scipy.linalg.sqrtm(root @ code_covariance @ root).real
    bures = np.trace(covariance) + np.trace(code_covariance) - 2 * np.trace(cross)
    return float(np.sqrt(np.sum((mean - codes.mean(0)) ** 2) + bures))


# ---- Gaussian distance


@pytest.mark.parametrize("dim", [2, 3, 8, 16])
@pytest.mark.parametrize("normalize", [True, False])
def test_gaussian_equals_scipy(dim, normalize):
    mean, covariance = moments(correlated(500, dim, shift=0.3))
    codebook = correlated(200, dim, seed=7, scale=0.6)
    value = gaussian_wasserstein(mean, covariance, codebook, normalize=normalize)
    assert value.item() == pytest.approx(scipy_distance(mean, covariance, codebook, normalize), rel=1e-5)


def test_gaussian_has_no_unit_unless_asked():
    features, codebook = correlated(300, 4), correlated(100, 4, seed=3)
    small = gaussian_wasserstein(*moments(features), codebook)
    large = gaussian_wasserstein(*moments(1000 * features), 1000 * codebook)
    assert large.item() == pytest.approx(small.item(), rel=1e-9)
    plain = gaussian_wasserstein(*moments(features), codebook, normalize=False)
    assert plain.item() == pytest.approx(small.item() * feature_scale(moments(features)[1]).item(), rel=1e-9)


def test_gaussian_gradient_equals_finite_differences():
    mean, covariance = moments(correlated(200, 3))
    codebook = correlated(12, 3, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda codes: gaussian_wasserstein(mean, covariance, codes), (codebook,))


def test_gaussian_gradient_reaches_the_codebook_only():
    features = correlated(200, 3).requires_grad_()
    codebook = correlated(12, 3, seed=5).requires_grad_()
    gaussian_wasserstein(*moments(features), codebook).backward()
    assert features.grad is None
    assert codebook.grad.abs().min() > 0


def degenerate_inputs():
    spread, flat = correlated(100, 4), correlated(100, 4)
    flat[:, 2:] = 1.0
    return {
        "features without two dims": (flat, correlated(30, 4, seed=2)),
        "codes without two dims": (spread, flat[:30]),
        "both without": (flat, flat[:30] + 0.1),
        "collapsed codebook": (spread, torch.full((30, 4), 0.2, dtype=torch.float64)),
        "one code": (spread, torch.full((1, 4), 0.2, dtype=torch.float64)),
        "fewer codes than dims": (spread, correlated(3, 4, seed=2)),
        "equal": (spread, spread.clone()),
        "one feature": (spread[:1], correlated(30, 4, seed=2)),
        "constant features": (torch.ones(9, 4, dtype=torch.float64), correlated(30, 4, seed=2)),
    }


@pytest.mark.parametrize("case", degenerate_inputs())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_is_finite_and_right_on_degenerate_inputs(case, dtype):
    features, codebook = (x.to(dtype) for x in degenerate_inputs()[case])
    codebook.requires_grad_()
    value = gaussian_wasserstein(*moments(features), codebook)
    value.backward()
    assert value.dtype == dtype
    assert torch.isfinite(codebook.grad).all()
    if case == "equal":
        assert value.item() < 1e-3
    elif "one feature" not in case and "constant" not in case:  # there the scale is a floor
        expected = scipy_distance(*moments(features), codebook.detach())
        assert value.item() == pytest.approx(expected, rel=1e-4)
    assert 1e-5 * (1 - 1e-6) <= value.item() < float("inf")


def test_gaussian_is_computed_in_full_precision_under_autocast():
    mean, covariance = moments(correlated(200, 4))
    codebook = correlated(50, 4, seed=5).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = gaussian_wasserstein(mean, covariance, codebook)
    assert value.item() == gaussian_wasserstein(mean, covariance, codebook).item()


def test_gaussian_descent_reaches_zero():
    mean, covariance = moments(correlated(1000, 3, shift=1.0))
    codebook = (0.01 * torch.randn(64, 3, generator=generator())).requires_grad_()
    optimizer = torch.optim.Adam([codebook], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimizer.zero_grad()
        gaussian_wasserstein(mean, covariance, codebook).backward()
        optimizer.step()
    assert gaussian_wasserstein(mean, covariance, codebook.detach()).item() < 0.01


# ---- moment window


def test_window_equals_moments_of_the_joined_features():
    window, batches = MomentWindow(100), []
    for seed, count in enumerate([30, 7, 50, 1, 64, 200, 12, 12, 90, 3, 99]):
        batches.append(correlated(count, 5, seed=seed, shift=seed).float())
        window.update(batches[-1])
        kept = next(i for i in range(1, len(batches) + 1) if sum(map(len, batches[-i:])) >= 100 or i == len(batches))
        mean, covariance = moments(torch.cat(batches[-kept:]))
        assert len(window) == sum(map(len, batches[-kept:]))
        torch.testing.assert_close(window.moments()[0], mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(window.moments()[1], covariance, rtol=1e-6, atol=1e-6)


def test_window_of_a_size_that_batches_divide_holds_just_that_many():
    window = MomentWindow(64)
    for seed in range(10):
        window.update(correlated(16, 2, seed=seed))
        assert len(window) == min(64, 16 * (seed + 1))


def test_window_keeps_no_graph():
    window = MomentWindow(10)
    window.update(correlated(4, 2).requires_grad_())
    assert not any(part.requires_grad for part in window.moments())


def test_window_state_round_trip(tmp_path):
    window = MomentWindow(50)
    for seed in range(6):
        window.update(correlated(20, 3, seed=seed))
    torch.save(window.state_dict(), tmp_path / "state.pt")
    other = MomentWindow(50)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(4):
        assert len(other) == len(window)
        assert all(torch.equal(a, b) for a, b in zip(window.moments(), other.moments(), strict=True))
        for each in (window, other):
            each.update(correlated(20, 3, seed=len(window)))


# ---- sliced distance


def unit_directions(count, dim, seed=0):
    directions = torch.randn(count, dim, generator=generator(seed))
    return directions / directions.norm(dim=1, keepdim=True)


def test_sliced_equals_numpy():
    features, codebook = correlated(40, 3).float(), correlated(40, 3, seed=9).float()
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
    features = correlated(200, 5).float()
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
    features, codebook, directions = correlated(90, 4).float(), correlated(30, 4, seed=2).float(), unit_directions(8, 4)
    value = sliced_wasserstein(features, codebook, directions)
    assert sliced_wasserstein(100 * features, 100 * codebook, directions).item() == pytest.approx(
        value.item(), rel=1e-5
    )


def test_sliced_gradient_equals_finite_differences_and_reaches_the_codebook_only():
    features, directions = correlated(60, 3).float().requires_grad_(), unit_directions(5, 3)
    codebook = correlated(10, 3, seed=4).float().requires_grad_()
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
    features, codebook, directions = correlated(90, 4).float(), correlated(30, 4, seed=2).float(), unit_directions(8, 4)
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


def test_gathered_features_of_one_process_are_its_own():
    features = correlated(5, 2).requires_grad_()
    gathered = gather_features(features)
    assert torch.equal(gathered, features)
    assert not gathered.requires_grad


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
