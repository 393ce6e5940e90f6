"""Distances against torch-fidelity, scipy and closed forms; moments and neighbours."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from wvq.errors import DataError
from wvq.eval.figures import distances as distances_module
from wvq.eval.figures.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    nearest_neighbours,
    small_sample_warnings,
)


def normal(count, dim=16, seed=0, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_moments_equal_numpy_over_any_number_of_chunks():
    for count in (200, 4096 + 37):
        features = normal(count, mean=3.0)
        mean, covariance = moments(features)
        np.testing.assert_allclose(mean, features.double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(features.double().numpy(), rowvar=False), atol=1e-12)


def test_moments_refuse_bad_features():
    with pytest.raises(DataError, match="NaN"):
        moments(torch.full((3, 4), float("nan")))
    with pytest.raises(DataError, match="at least 2"):
        moments(torch.zeros(1, 4))


def test_frechet_equals_scipy_and_torch_fidelity():
    a, b = normal(300).double(), normal(250, seed=1, mean=0.4, scale=1.7).double()
    mean_a, mean_b = a.mean(0).numpy(), b.mean(0).numpy()
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    sides = [fid_features_to_statistics(side) for side in (a, b)]
    fidelity = fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(fidelity, rel=1e-9)
    assert frechet_distance(moments(a), moments(b)) == frechet_distance(a, b)


def test_frechet_of_fewer_pictures_than_dims_is_the_same_value():
    a, b = normal(20, dim=32).double(), normal(25, dim=32, seed=1, mean=0.3, scale=2.0).double()
    sides = [fid_features_to_statistics(side) for side in (a, b)]
    fidelity = fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    # The roots of eigenvalues that should be 0 make the reference value itself uncertain here.
    assert frechet_distance(a, b) == pytest.approx(fidelity, rel=1e-5)
    assert 0 <= frechet_distance(a, a) < 1e-9
    assert frechet_distance(a, a + 1) == pytest.approx(32, rel=1e-9)


def test_frechet_refuses_other_dims_and_bad_values():
    with pytest.raises(DataError, match="equal D"):
        frechet_distance(normal(10), normal(10, dim=8))
    with pytest.raises(DataError, match="16 and 8"):
        frechet_distance(moments(normal(10)), moments(normal(10, dim=8)))
    with pytest.raises(DataError, match="NaN"):
        frechet_distance(normal(10), normal(10) * float("inf"))
    with pytest.raises(DataError, match="NaN"):
        kernel_distance(normal(10), normal(10) * float("nan"))


def mmd_by_loops(a, b):
    """The unbiased estimator as printed: sums over pairs i != j."""
    kernel = lambda x, y: (float(x @ y) / len(x) + 1) ** 3  # noqa: E731
    m = len(a)
    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(x, y) for x in a for y in b) / m**2


def test_kernel_distance_equals_the_definition():
    a, b = normal(12).double(), normal(12, seed=1, mean=0.5).double()
    assert kernel_distance(a, b) == pytest.approx(mmd_by_loops(a, b), rel=1e-9)


def test_kernel_distance_averages_subsets_of_large_sets(monkeypatch):
    assert (distances_module.KERNEL_SUBSETS, distances_module.KERNEL_SUBSET_SIZE) == (100, 1000)
    monkeypatch.setattr(distances_module, "KERNEL_SUBSETS", 10)
    monkeypatch.setattr(distances_module, "KERNEL_SUBSET_SIZE", 50)
    a, b = normal(70, dim=4), normal(60, dim=4, seed=1, mean=0.3)
    fidelity = kid_features_to_metric(a, b, kid_subsets=10, kid_subset_size=50, rng_seed=0, verbose=False)
    assert kernel_distance(a, b) == pytest.approx(fidelity["kernel_inception_distance_mean"], rel=1e-3)


def test_kernel_distance_of_unequal_small_sets():
    assert kernel_distance(normal(40), normal(20, seed=1, mean=2.0)) > kernel_distance(normal(40), normal(20, seed=1))


def test_distances_need_two_pictures_a_side():
    with pytest.raises(DataError, match="at least 2 pictures"):
        kernel_distance(normal(1), normal(5))
    with pytest.raises(DataError, match="at least 2 pictures"):
        frechet_distance(normal(5), normal(0))


def test_inception_score():
    assert inception_score(torch.zeros(50, 8)) == pytest.approx(1.0)
    certain = 1000 * torch.eye(5).repeat(20, 1)
    assert inception_score(certain, splits=1) == pytest.approx(5.0)
    logits = normal(60, dim=8, scale=3.0)
    expected = isc_features_to_metric(logits, splits=10, rng_seed=2020)["inception_score_mean"]
    assert inception_score(logits) == pytest.approx(expected)
    with pytest.raises(DataError, match="at least 10"):
        inception_score(torch.zeros(9, 8))


def test_small_samples_are_warned_about():
    assert small_sample_warnings(10, samples=10, floor=11) == []
    (line,) = small_sample_warnings(1280, samples=191)
    assert "samples: N = 191" in line
    assert "1280" in line
    assert "\n" not in line


def test_nearest_neighbours_equal_a_full_search():
    queries, references = normal(23), normal(57, seed=1)
    full = torch.cdist(queries.double(), references.double())
    indices, distances = nearest_neighbours(queries, references, k=3, chunk_size=5)
    expected = full.topk(3, largest=False)
    assert indices.shape == distances.shape == (23, 3)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(distances, expected.values.float())
    assert (distances.diff(dim=1) >= 0).all()


def test_nearest_neighbour_of_a_copy_is_the_original():
    references = normal(40)
    indices, distances = nearest_neighbours(references[[7, 3]], references, k=1)
    assert indices.flatten().tolist() == [7, 3]
    assert distances.max() < 1e-5


def test_nearest_neighbours_refuse_bad_requests():
    for k in (0, 6):
        with pytest.raises(DataError, match="between 1 and the 5"):
            nearest_neighbours(normal(2), normal(5), k=k)
    with pytest.raises(DataError, match="equal D"):
        nearest_neighbours(normal(2), normal(5, dim=4), k=1)
