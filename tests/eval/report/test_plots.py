"""Figures: the drawn data are the logged data, and logs without data are refused."""

import math

import numpy as np
import pytest

from wvq.errors import DataError
from wvq.eval.report.plots import code_histogram, loss_curves, metric_curves


def lines(figure, axes=0):
    return {line.get_label(): line for line in figure.axes[axes].get_lines()}


def test_loss_curves_draw_the_log():
    train = [{"images": 10 * i, "loss": 5.0 - i / 10} for i in range(10)]
    validation = [{"images": 40, "validation_loss": 4.5}, {"images": 90, "other": 1.0}]
    figure = loss_curves(train, validation, reference_lines={"ln K": 6.93}, validation_key="validation_loss")
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["training"].get_ydata(), [row["loss"] for row in train])
    assert drawn["held out"].get_xdata().tolist() == [40]
    assert "ln K (6.93)" in drawn
    assert figure.axes[0].get_ylim()[1] > 6.93


def test_long_logs_are_smoothed_without_lag_and_spikes_do_not_flatten_the_axis():
    train = [{"images": i, "loss": 100.0 if i == 0 else 2.0 + (i % 2) * 0.1} for i in range(200)]
    figure = loss_curves(train)
    smoothed = lines(figure)["training"].get_ydata()
    assert smoothed.max() <= 2.1
    assert figure.axes[0].get_ylim()[1] < 3


def test_non_finite_and_missing_values_are_skipped():
    train = [{"images": 0, "loss": float("nan")}, {"images": 1, "loss": None}, {"images": 2, "loss": 1.0}, {"loss": 1}]
    assert lines(loss_curves(train))["training"].get_ydata().tolist() == [1.0]
    with pytest.raises(DataError, match="'loss'"):
        loss_curves([{"images": 0, "los": 1.0}])


def test_code_histogram_annotates_u_and_c():
    counts = [5, 0, 20, 10, 5, 0, 0, 0]
    figure = code_histogram(counts)
    axes = figure.axes[0]
    shares = np.array([20, 10, 5, 5]) / 40
    perplexity = math.exp(-(shares * np.log(shares)).sum())
    assert "U = 50.0%" in axes.get_title(loc="left")
    assert f"C = {perplexity:,.0f}" in axes.get_title(loc="left")
    assert axes.get_yscale() == "log"
    np.testing.assert_allclose(lines(figure)["share of tokens"].get_ydata(), 100 * shares)
    with pytest.raises(DataError, match="no code"):
        code_histogram(np.zeros(4))


def test_code_histogram_of_uniform_usage_renders(tmp_path):
    figure = code_histogram(np.full(16, 7))
    figure.savefig(tmp_path / "figure.png")
    assert "C = 16" in figure.axes[0].get_title(loc="left")


def test_metric_curves_make_one_panel_a_metric():
    rows = [{"images": i, "psnr_rgb": 20.0 + i, "perplexity": 5.0 * i} for i in range(4)]
    figure = metric_curves(rows, ["psnr_rgb", "perplexity", "absent"], labels={"psnr_rgb": "PSNR (dB)"})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["PSNR (dB)", "perplexity"]
    with pytest.raises(DataError, match="absent"):
        metric_curves(rows, ["absent"])


def test_a_sweep_is_ticked_at_its_values():
    rows = [{"scale": 1 + step / 2, "fid": 5.0} for step in range(4)]
    (axes,) = metric_curves(rows, ["fid"], "scale").axes
    assert list(axes.get_xticks()) == [1.0, 1.5, 2.0, 2.5]
