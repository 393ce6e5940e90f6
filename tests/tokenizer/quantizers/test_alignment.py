"""Gaussian distance, moment window and affine map against independent references, on degenerate inputs as well."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.processes import run_ranks
from tests.tokenizer.quantizers.features import correlated, degenerate_inputs, generator, moments
from wvq.tokenizer.quantizers.alignment import MomentWindow, affine_map, feature_scale, gaussian_wasserstein


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


def reference_distance(features, codes, normalize=True, target_scale=1.0):
    """From the points themselves: tr (S_z^1/2 S_e S_z^1/2)^1/2 is the nuclear norm of E Z^T / sqrt(N K)."""
    z, e = features - features.mean(0), codes - codes.mean(0)
    scale = np.sqrt(np.mean(z**2, 0).max()) if normalize else 1.0
    z = target_scale * z
    triangle = np.linalg.qr(z, mode="r")
    cross = np.linalg.svd(e @ triangle.T, compute_uv=False).sum() / np.sqrt(len(z) * len(e))
    shift = np.sum((features.mean(0) - codes.mean(0)) ** 2)
    bures = np.sum(z**2) / len(z) + np.sum(e**2) / len(e) - 2 * cross
    return np.sqrt((shift + bures) / scale**2 + 1e-10)


def assert_value_and_gradient(features, codebook, rel=1e-5, **options):
    """Against the reference and its central differences at up to 40 entries of the codebook."""
    codebook = codebook.clone().requires_grad_()
    value = gaussian_wasserstein(*moments(features), codebook, **options)
    value.backward()
    x, codes = features.double().numpy(), codebook.detach().double().numpy()
    assert value.item() == pytest.approx(reference_distance(x, codes, **options), rel=rel)
    chosen = torch.randperm(codes.size, generator=generator(1))[:40].numpy()
    expected = []
    step = 1e-4 * codes.std()
    for entry in chosen:
        up, down = codes.copy(), codes.copy()
        up.flat[entry] += step
        down.flat[entry] -= step
        expected.append((reference_distance(x, up, **options) - reference_distance(x, down, **options)) / (2 * step))
    found = codebook.grad.double().numpy().flat[chosen]
    assert np.linalg.norm(found - expected) < rel * np.linalg.norm(expected)


DIMS = (2, 3, 8, 16, 32, 64)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("target_scale", [1.0, 0.5, 3.0])
def test_gaussian_value_and_gradient_equal_the_reference(dim, normalize, target_scale):
    features, codebook = correlated(300, dim, shift=0.3), correlated(150, dim, seed=7, scale=0.6)
    assert_value_and_gradient(features, codebook, normalize=normalize, target_scale=target_scale)


@pytest.mark.parametrize("target_scale", [1.0, 0.5])
def test_the_reference_itself_equals_scipy(target_scale):
    features, codebook = correlated(300, 5, shift=0.3), correlated(150, 5, seed=7)
    mean, covariance = moments(features)
    expected = scipy_distance(mean, covariance * target_scale**2, codebook, normalize=False)
    found = reference_distance(features.numpy(), codebook.numpy(), normalize=False, target_scale=target_scale)
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("dim", DIMS)
def test_gaussian_is_as_accurate_for_a_nearly_collapsed_codebook(dim):
    assert_value_and_gradient(correlated(300, dim), correlated(150, dim, seed=7, scale=1e-3, shift=0.1))


@pytest.mark.parametrize("dim", DIMS)
def test_gaussian_is_as_accurate_where_the_features_lack_dims(dim):
    features = correlated(300, dim)
    features[:, dim // 2 :] = features[:, :1]
    assert_value_and_gradient(features, correlated(150, dim, seed=7))


@pytest.mark.parametrize("dim", [2, 8, 64])
def test_gaussian_is_as_accurate_far_from_the_origin(dim):
    assert_value_and_gradient(correlated(300, dim, shift=1e3), correlated(150, dim, seed=7, shift=1e3))
    assert_value_and_gradient(correlated(300, dim, shift=1e3), correlated(150, dim, seed=7))


def test_gaussian_is_as_accurate_for_one_feature_and_for_codes_in_float32():
    assert_value_and_gradient(correlated(1, 4), correlated(30, 4, seed=2), normalize=False)
    assert_value_and_gradient(correlated(300, 8), correlated(150, 8, seed=7).float(), rel=2e-5)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("case", ["collapsed", "rank-deficient", "one code", "as many codes as dims"])
def test_gaussian_is_right_with_a_finite_gradient_at_its_kinks(dim, case):
    features, codes = correlated(300, dim, shift=0.3), correlated(150, dim, seed=7)
    codebook = {
        "collapsed": torch.full_like(codes, 0.2),
        "rank-deficient": torch.cat([codes[:, : dim - 1], codes[:, :1]], 1),
        "one code": codes[:1],
        "as many codes as dims": codes[:dim],
    }[case]
    codebook = codebook.clone().requires_grad_()
    value = gaussian_wasserstein(*moments(features), codebook)
    value.backward()
    assert value.item() == pytest.approx(reference_distance(features.numpy(), codebook.detach().numpy()), rel=1e-5)
    assert torch.isfinite(codebook.grad).all()
    assert codebook.grad.abs().max() > 0


@pytest.mark.parametrize("dim", DIMS)
def test_gaussian_of_equal_inputs_is_its_floor(dim):
    # What rounding leaves grows with the condition of the covariance, and differs between processors: a low one.
    features = torch.randn(300, dim, generator=generator(), dtype=torch.float64) * torch.linspace(1, 3, dim)
    codebook = features.clone().requires_grad_()
    value = gaussian_wasserstein(*moments(features), codebook)
    value.backward()
    assert value.item() == pytest.approx(1e-5, rel=1e-3)
    assert torch.isfinite(codebook.grad).all()
    assert codebook.grad.norm() < 1e-6


def test_gaussian_has_no_unit_unless_asked():
    features, codebook = correlated(300, 4), correlated(100, 4, seed=3)
    small = gaussian_wasserstein(*moments(features), codebook)
    large = gaussian_wasserstein(*moments(1000 * features), 1000 * codebook)
    assert large.item() == pytest.approx(small.item(), rel=1e-9)
    plain = gaussian_wasserstein(*moments(features), codebook, normalize=False)
    assert plain.item() == pytest.approx(small.item() * feature_scale(moments(features)[1]).item(), rel=1e-9)


def test_gaussian_gradient_reaches_the_codebook_only():
    features = correlated(200, 3).requires_grad_()
    codebook = correlated(12, 3, seed=5).requires_grad_()
    gaussian_wasserstein(*moments(features), codebook).backward()
    assert features.grad is None
    assert codebook.grad.abs().min() > 0


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


def last_batches(counts, size):
    """How many of the last batches have ``size`` features at least."""
    return next((i for i in range(1, len(counts)) if sum(counts[-i:]) >= size), len(counts))


def test_window_equals_moments_of_the_joined_features():
    window, batches = MomentWindow(100), []
    for seed, count in enumerate([30, 7, 50, 1, 64, 200, 12, 12, 90, 3, 99]):
        batches.append(correlated(count, 5, seed=seed, shift=seed).float())
        window.update(batches[-1])
        held = last_batches(list(map(len, batches)), 100)
        mean, covariance = moments(torch.cat(batches[-held:]))
        assert len(window) == sum(map(len, batches[-held:]))
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_takes_its_place_but_adds_nothing(bad):
    window, batches = MomentWindow(100), []
    for seed, count in enumerate([20, 30, 10, 45, 8, 60, 25, 30, 12]):
        batch = correlated(count, 3, seed=seed, shift=seed)
        spoiled = seed % 3 == 1
        batches.append((count, batch[:0] if spoiled else batch))
        if spoiled:
            batch[count // 2, 1] = bad
        window.update(batch)
        kept = next(
            i for i in range(1, len(batches) + 1) if sum(n for n, _ in batches[-i:]) >= 100 or i == len(batches)
        )
        mean, covariance = moments(torch.cat([batch for _, batch in batches[-kept:]]))
        torch.testing.assert_close(window.moments()[0], mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(window.moments()[1], covariance, rtol=1e-6, atol=1e-6)


def test_a_window_stays_accurate_far_from_the_origin():
    window, features = MomentWindow(10_000), correlated(500, 4, shift=1e3)
    for part in features.float().split(50):
        window.update(part)
    torch.testing.assert_close(window.moments()[1], moments(features.float())[1], rtol=1e-6, atol=1e-6)


PROCESS = """
import sys, torch, torch.distributed as dist
from wvq.tokenizer.quantizers.alignment import MomentWindow, random_directions, random_sample

dist.init_process_group("gloo")
folder, rank = sys.argv[1], dist.get_rank()
window, own, held = MomentWindow(100), MomentWindow(100), []
for batch in torch.load(f"{folder}/batches.pt"):
    window.update(batch[rank])
    own.update(batch[rank], joined=False)
    held.append((len(window), *window.moments(), *own.moments()))
torch.manual_seed(rank)
points = torch.arange(50.0)[:, None]
drawn = [random_directions(5, 3, "cpu"), random_sample(points, 9)]
alone = [random_directions(5, 3, "cpu", joined=False), random_sample(points, 9, joined=False)]
torch.save({"held": held, "drawn": drawn, "alone": alone}, f"{folder}/held-{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_hold_the_window_of_one_on_the_joined_batches(tmp_path):
    batches = [correlated(2 * n, 3, seed=n, shift=n).view(2, n, 3) for n in (20, 7, 31, 16, 50, 9, 23)]
    batches[2][1, 5, 0] = float("nan")
    torch.save(batches, tmp_path / "batches.pt")
    for done in run_ranks(["-c", PROCESS, tmp_path]):
        assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"held-{rank}.pt", weights_only=True) for rank in range(2))
    window, own = MomentWindow(100), MomentWindow(100)
    for batch, mine, other in zip(batches, first["held"], second["held"], strict=True):
        window.update(batch.flatten(0, 1))
        own.update(batch[0])
        assert mine[0] == other[0] == len(window)
        for a, b, expected in zip(mine[1:3], other[1:3], window.moments(), strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, expected, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(mine[3:], own.moments(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first["drawn"], second["drawn"], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first["alone"], second["alone"], strict=True))


# ---- affine map


@pytest.mark.parametrize("dim", [1, 2, 8, 32])
@pytest.mark.parametrize("target_scale", [1.0, 0.5, 2.0])
def test_mapped_codes_have_the_moments_of_the_features(dim, target_scale):
    mean, covariance = moments(correlated(300, dim, shift=2.0))
    mapped = affine_map(mean, covariance, correlated(100, dim, seed=4, scale=0.01), target_scale)
    found_mean, found_covariance = moments(mapped)
    torch.testing.assert_close(found_mean, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found_covariance, covariance * target_scale**2, rtol=1e-6, atol=1e-8)
    assert gaussian_wasserstein(mean, covariance, mapped, target_scale=target_scale).item() < 1e-4


def test_codes_that_match_stay_where_they_are():
    codebook = correlated(100, 4, shift=1.0)
    torch.testing.assert_close(affine_map(*moments(codebook), codebook), codebook, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dim", [2, 8])
def test_the_map_equals_that_of_scipy(dim):
    mean, covariance = moments(correlated(300, dim, shift=2.0))
    codebook = correlated(100, dim, seed=4)
    code_mean, code_covariance = moments(codebook)
    root = scipy.linalg.sqrtm(code_covariance.numpy()).real
    inverse = np.linalg.inv(root)
    transport = inverse @ scipy.linalg.sqrtm(root @ covariance.numpy() @ root).real @ inverse
    expected = mean.numpy() + (codebook - code_mean).numpy() @ transport.T
    np.testing.assert_allclose(affine_map(mean, covariance, codebook), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", degenerate_inputs())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_map_is_finite_and_meets_the_mean_on_degenerate_inputs(case, dtype):
    features, codebook = (x.to(dtype) for x in degenerate_inputs()[case])
    mean, covariance = moments(features)
    mapped = affine_map(mean, covariance, codebook)
    assert mapped.dtype == dtype
    assert torch.isfinite(mapped).all()
    torch.testing.assert_close(mapped.double().mean(0), mean, rtol=1e-5, atol=1e-5)


def test_a_direction_without_spread_stays_without():
    codebook = correlated(50, 3)
    codebook[:, 2] = 7.0
    mean, covariance = moments(correlated(300, 3, seed=1))
    covariance[2, :2] = covariance[:2, 2] = 0
    mapped = affine_map(mean, covariance, codebook)
    found = moments(mapped)[1]
    torch.testing.assert_close(found[:2, :2], covariance[:2, :2], rtol=1e-6, atol=1e-8)
    assert found[2].abs().max() < 1e-8
    assert mapped[:, 2].tolist() == pytest.approx([mean[2].item()] * 50)
