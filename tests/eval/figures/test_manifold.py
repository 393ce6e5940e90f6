"""Precision, recall, density and coverage by definition, the right way round, and equal to torch-fidelity's."""

import pytest
import torch

from wvq.errors import DataError
from wvq.eval.figures import manifold
from wvq.eval.figures.manifold import density_coverage, manifold_metrics


def normal(count, dim=8, seed=0, scale=1.0, mean=0.0):
    return mean + scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def by_definition(features, real, k_share=3, k_density=5):
    def radii(points, k):
        return torch.cdist(points.double(), points.double()).sort(1).values[:, k]

    between = torch.cdist(real.double(), features.double())
    inside = between < radii(real, k_density)[:, None]
    return {
        "precision": float((between <= radii(real, k_share)[:, None]).any(0).double().mean()),
        "recall": float((between <= radii(features, k_share)[None]).any(1).double().mean()),
        "density": float(inside.double().sum() / (k_density * len(features))),
        "coverage": float(inside.any(1).double().mean()),
    }


@pytest.mark.parametrize("count", [40, 57])
def test_all_four_equal_their_definitions(count):
    features, real = normal(count, scale=1.2), normal(50, seed=1)
    assert manifold_metrics(features, real)._asdict() == pytest.approx(by_definition(features, real), abs=1e-6)


def test_tiles_change_nothing(monkeypatch):
    features, real = normal(40), normal(50, seed=1)
    whole = manifold_metrics(features, real)
    monkeypatch.setattr(manifold, "_TILE", 7)
    assert manifold_metrics(features, real) == pytest.approx(whole)


def test_a_collapsed_generator_is_precise_and_covers_nothing():
    real = normal(300)
    collapsed = real[:1] + normal(300, seed=1, scale=1e-3)  # 300 near-copies of one real picture
    shares = manifold_metrics(collapsed, real)
    assert shares.precision > 0.99
    assert shares.recall < 0.02
    assert shares.coverage < 0.1


def test_a_generator_that_wanders_off_recalls_and_is_not_precise():
    shares = manifold_metrics(normal(300, scale=4.0), normal(300, seed=1))
    assert shares.recall > 0.9
    assert shares.precision < 0.3
    assert shares.density < 0.1


def test_the_same_distribution_is_dense_and_covered():
    density, coverage = density_coverage(normal(500), normal(500, seed=1))
    assert density == pytest.approx(1, abs=0.1)
    assert coverage > 0.9


def test_no_more_than_the_published_number_is_taken(monkeypatch):
    monkeypatch.setattr(manifold, "MOST", 20)
    features, real = normal(30), normal(40, seed=1)
    assert manifold_metrics(features, real) == manifold_metrics(features[:20], real[:20])


def test_bad_features_are_refused():
    with pytest.raises(DataError, match="equal D"):
        manifold_metrics(normal(10, dim=4), normal(10, dim=5))
    with pytest.raises(DataError, match="more than 5 pictures a side, not 5 and 9"):
        manifold_metrics(normal(5), normal(9))
