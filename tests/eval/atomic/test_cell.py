"""The atomic study's cells: checks, known moments, equal conditions, and what each method reaches on a tiny cell."""

import math
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest
import torch

from wvq.errors import ConfigError
from wvq.eval.atomic import cell as atomic
from wvq.eval.atomic.cell import PROTOCOLS, AtomicCell, draw_features, run_cell

TINY = AtomicCell(num_codes=64, code_dim=3, num_features=256, steps=20, evaluation_features=2000)
TRAINED = [name for name in PROTOCOLS if name != "fixed"]
BAD = {
    "quantizer": "slice",
    "distribution": "gausian",
    "num_codes": 0,
    "code_dim": 0,
    "num_features": 0,
    "evaluation_features": -1,
    "num_projections": 0,
    "steps": -1,
    "code_scale": 0.0,
    "target_scale": math.nan,
    "shift": math.inf,
    "separation": math.nan,
}


def run(**changes):
    return run_cell(replace(TINY, **changes), progress=False)


def figures(**changes):
    return run(**changes)["result"]


# ---- checks


@pytest.mark.parametrize("field", BAD)
def test_a_bad_field_is_one_error_that_names_it(field):
    with pytest.raises(ConfigError, match=f"^{field} ") as caught:
        run(**{field: BAD[field]})
    assert "\n" not in str(caught.value)


def test_an_unknown_name_has_a_near_match():
    with pytest.raises(ConfigError, match='did you mean "sliced"'):
        replace(TINY, quantizer="slicd").check()
    with pytest.raises(ConfigError, match='did you mean "gaussian"'):
        replace(TINY, distribution="gausian").check()


def test_only_two_modes_can_be_separated():
    with pytest.raises(ConfigError, match=r"^separation .*bimodal"):
        replace(TINY, separation=1.0).check()
    replace(TINY, separation=1.0, distribution="bimodal").check()


def test_the_name_holds_the_main_axes_and_what_is_not_default():
    assert AtomicCell().name == "gaussian-sliced"
    assert AtomicCell(quantizer="ema", distribution="uniform", shift=2.5, seed=3).name == "uniform-ema-shift2.5-seed3"


# ---- features


@pytest.mark.parametrize(
    ("distribution", "separation", "variance", "covariance"),
    [("gaussian", 0, 1, 0), ("uniform", 0, 1 / 3, 0), ("bimodal", 0, 1, 0), ("bimodal", 3, 10, 9)],
)
def test_features_have_the_moments_of_their_distribution(distribution, separation, variance, covariance):
    cell = replace(TINY, distribution=distribution, separation=separation, shift=2.0)
    features = draw_features(cell, 200_000, torch.Generator().manual_seed(0))
    assert features.shape == (200_000, 3)
    assert features.dtype == torch.float32
    assert features.mean(0).tolist() == pytest.approx([2.0] * 3, abs=0.03)
    expected = torch.full((3, 3), float(covariance)).fill_diagonal_(variance)
    torch.testing.assert_close(features.T.cov(), expected, atol=0.05, rtol=0.01)


def test_uniform_features_fill_their_cube():
    features = draw_features(replace(TINY, distribution="uniform", shift=5.0), 10_000, torch.Generator().manual_seed(0))
    assert features.min().item() == pytest.approx(4, abs=0.01)
    assert features.max().item() == pytest.approx(6, abs=0.01)


def test_two_modes_lie_at_the_separation_with_unit_spread():
    cell = replace(TINY, distribution="bimodal", separation=20.0, shift=1.0)
    features = draw_features(cell, 20_000, torch.Generator().manual_seed(0))
    upper = (features > 1).all(1)
    assert (upper | (features < 1).all(1)).all()
    assert upper.float().mean().item() == pytest.approx(0.5, abs=0.02)
    for mode, centre in ((features[upper], 21), (features[~upper], -19)):
        assert mode.mean(0).tolist() == pytest.approx([centre] * 3, abs=0.05)
        assert mode.std(0).tolist() == pytest.approx([1] * 3, abs=0.05)


# ---- runs


@pytest.mark.parametrize("quantizer", PROTOCOLS)
@pytest.mark.parametrize("distribution", ["gaussian", "bimodal"])
def test_every_method_gives_finite_figures_and_a_curve(quantizer, distribution):
    result = run(quantizer=quantizer, distribution=distribution)
    found, curve = result["result"], result["curve"]
    assert all(math.isfinite(value) for row in (found, *curve) for value in row.values())
    assert found["num_tokens"] == 2000
    assert 0 < found["utilization"] <= 1
    assert 1 <= found["perplexity"] <= 64 * found["utilization"] * (1 + 1e-9)
    assert found["quantization_error"] > 0
    assert [row["step"] for row in curve] == ([] if quantizer == "fixed" else list(range(20)))
    assert result["cell"]["quantizer"] == quantizer


def test_a_curve_has_about_a_hundred_rows():
    assert [row["step"] for row in run(steps=250, num_codes=4, num_features=8)["curve"]] == list(range(0, 250, 2))


@pytest.mark.parametrize("quantizer", PROTOCOLS)
def test_the_same_seed_gives_the_same_result(quantizer):
    first = run(quantizer=quantizer, steps=6, seed=3)
    torch.randn(5)
    again = run(quantizer=quantizer, steps=6, seed=3)
    assert (first["result"], first["curve"]) == (again["result"], again["curve"])
    assert run(quantizer=quantizer, steps=6, seed=4)["result"] != first["result"]


def test_all_methods_see_the_same_features(monkeypatch):
    seen = []

    def record(*arguments):
        seen.append(draw_features(*arguments))
        return seen[-1]

    monkeypatch.setattr(atomic, "draw_features", record)
    runs = {}
    for quantizer in PROTOCOLS:
        seen = []
        run(quantizer=quantizer, steps=3)
        runs[quantizer] = seen
    assert [features.shape for features in runs["sliced"]] == [(256, 3)] * 3 + [(2000, 3)]
    for quantizer, features in runs.items():
        expected = runs["sliced"]
        if quantizer in ("kmeans", "fixed"):  # one set of features, and none
            expected = [*expected[: len(features) - 1], expected[-1]]
        assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True)), quantizer


def test_methods_without_a_map_of_their_own_start_from_the_same_codes():
    starts = {name: run(quantizer=name, steps=1)["curve"][0] for name in TRAINED if name not in ("linear", "kmeans")}
    assert len(starts) >= 7
    for name, start in starts.items():
        assert start == pytest.approx(starts["vanilla"]), name


@pytest.mark.parametrize("quantizer", TRAINED)
def test_training_cuts_the_error_at_a_shift(quantizer):
    changes = {"shift": 3.0, "steps": 150}
    untrained = figures(quantizer="fixed", **changes)["quantization_error"]
    assert figures(quantizer=quantizer, **changes)["quantization_error"] < 0.35 * untrained


def test_aligned_codes_are_all_used_at_a_shift_where_plain_ones_collapse():
    setting = {"num_codes": 128, "code_dim": 4, "num_features": 1024, "steps": 400, "shift": 5.0}
    found = {
        name: figures(quantizer=name, evaluation_features=8000, **setting)
        for name in ("vanilla", "wasserstein", "sliced")
    }
    assert found["vanilla"]["utilization"] < 0.15
    for name in ("wasserstein", "sliced"):
        assert found[name]["utilization"] > 0.93
        assert found[name]["wasserstein_distance"] < 0.1 * found["vanilla"]["wasserstein_distance"]
        assert found[name]["quantization_error"] < 0.4 * found["vanilla"]["quantization_error"]


# ---- codes as drawn


def fixed_error(seeds=6, **changes):
    setting = {"quantizer": "fixed", "evaluation_features": 100_000} | changes
    return mean(figures(seed=seed, **setting)["quantization_error"] for seed in range(seeds))


def test_wider_codes_cut_the_error_in_two_dims():
    plain, wide = (fixed_error(num_codes=1024, code_dim=2, code_scale=scale) for scale in (1.0, 1.4))
    assert 0.31 < 1 - wide / plain < 0.46


def test_the_best_width_in_one_dim_is_the_root_of_three():
    scales = (1.2, 1.4, 1.73, 2.1, 2.5)
    errors = [fixed_error(num_codes=1024, code_dim=1, code_scale=scale) for scale in scales]
    assert scales[errors.index(min(errors))] == 1.73
    assert errors[0] > errors[1] > errors[2] < errors[3] < errors[4]


def test_codes_at_the_origin_leave_the_second_moment():
    for shift in (0.0, 2.0):
        found = figures(quantizer="fixed", code_scale=1e-4, shift=shift)
        assert found["quantization_error"] == pytest.approx(3 * (1 + shift**2), rel=0.05)
        assert found["wasserstein_distance"] == pytest.approx(math.sqrt(3 * (1 + shift**2)), rel=0.05)


def test_the_distance_grows_with_the_shift_of_the_mean():
    near, far = (figures(quantizer="fixed", num_codes=4096, shift=shift) for shift in (0.0, 5.0))
    assert near["wasserstein_distance"] < 0.2
    assert far["wasserstein_distance"] == pytest.approx(5 * math.sqrt(3), rel=0.02)


def test_kmeans_never_gets_worse_and_ends_below_trained_codes():
    setting = {"num_features": 4096, "steps": 30}
    result = run(quantizer="kmeans", **setting)
    errors = [row["quantization_error"] for row in result["curve"]]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    for name in ("sliced", "wasserstein", "vanilla"):
        assert result["result"]["quantization_error"] < figures(quantizer=name, **setting)["quantization_error"]


def test_kmeans_needs_a_feature_for_each_code():
    with pytest.raises(ConfigError, match=r"num_features must be at least num_codes \(64\), got 63"):
        run(quantizer="kmeans", num_features=63)
