"""The metrics: their names over each network, what they need, which way is better; a new one is one entry."""

import dataclasses

import pytest
import torch

from tests.stand_ins import features_of
from wvq.eval.features.pictures import PictureFeatures
from wvq.eval.figures import metrics as metrics_module
from wvq.eval.figures.comparison import compare_with_pool
from wvq.eval.figures.metrics import DISTANCES, METRICS, Metric, compare, is_better_higher


@pytest.fixture
def sides(pictures, projection_with_logits):
    return [features_of(pictures(12, seed=seed), projection_with_logits) for seed in (0, 1)]


def test_only_inception_features_give_the_published_names(sides, projection_with_logits):
    other = compare(projection_with_logits, *sides)
    names = ["fd", "kd", "precision", "recall", "density", "coverage"]
    assert list(other) == [*(f"{name}_projection" for name in names), "inception_score"]
    projection_with_logits.name = "inception"
    published = compare(projection_with_logits, *sides)
    assert list(published) == ["fid", "kid", "precision", "recall", "density", "coverage", "inception_score"]
    assert list(published.values()) == list(other.values())


def test_a_metric_is_left_out_where_it_lacks_features_or_pictures(sides, projection, pictures):
    samples, real = sides
    assert set(compare(projection, samples, real, DISTANCES)) == {"fd_projection", "kd_projection"}
    few = compare(projection, samples, real.part(slice(5)))
    assert set(few) == {"fd_projection", "kd_projection", "inception_score"}  # which needs no real pictures
    spatial = [dataclasses.replace(side, spatial=side.features[:, :3]) for side in sides]
    assert "sfd_projection" in compare(projection, *spatial)
    assert "inception_score" not in compare(projection, samples.part(slice(9)), real)
    assert compare(projection, samples.part(slice(1)), real.part(slice(1))) == {}


def test_every_name_has_its_direction():
    higher = {"precision", "recall", "density", "coverage", "inception_score"}
    assert {name for metric in METRICS for name in metric.names if is_better_higher(name)} == higher
    for name in ("precision_projection", "coverage_at_floor_n", "psnr_rgb", "joint_utilization", "clip_score"):
        assert is_better_higher(name)
    for name in ("fid_at_floor_n", "fd_projection", "kd_projection", "sfid", "rfid", "lpips", "quantization_error"):
        assert not is_better_higher(name)


def test_a_new_metric_is_one_entry(sides, projection, monkeypatch):
    mean = Metric(("shift",), ("shift_{}",), higher=True, compute=lambda a, b: [float((a.mean(0) - b.mean(0)).norm())])
    monkeypatch.setattr(metrics_module, "METRICS", (*METRICS, mean))
    samples, real = sides
    comparison = compare_with_pool(projection, samples, real)
    assert {"shift_projection", "shift_projection_at_floor_n"} <= set(comparison.metrics)
    assert "shift_projection" in comparison.floor
    assert is_better_higher("shift_projection")


def test_the_floor_shrinks_with_n(projection):
    def floor(count):
        draws = torch.randn(2, count, 12, generator=torch.Generator().manual_seed(0))
        return compare(projection, *(PictureFeatures(draw, None, "", 16, "none") for draw in draws), DISTANCES)

    small, large = floor(50), floor(800)
    assert 0 < large["fd_projection"] < small["fd_projection"]
    assert abs(large["kd_projection"]) < 0.05
