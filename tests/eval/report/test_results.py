"""Result files: complete keys, valid JSON, atomic writing."""

import json
import os

import pytest

from wvq.eval.figures.comparison import Comparison
from wvq.eval.report.results import library_versions, make_result, write_result


def result(**metrics):
    return make_result("generation", Comparison(metrics, {"fid": 1.0}, 10, 10, 5), {"seed": 0}, ["small"])


def test_result_round_trip(tmp_path):
    written = result(fid=2.5)
    path = tmp_path / "deep" / "result.json"
    write_result(path, written)
    read = json.loads(path.read_text())
    assert read == written
    assert set(read) == {
        *("kind", "metrics", "floor", "num_images", "num_reference", "num_floor"),
        *("settings", "versions", "hardware", "warnings", "date"),
    }
    assert os.listdir(path.parent) == ["result.json"]


def test_values_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "result.json"
    write_result(path, result(fid=float("nan"), kid=float("inf")))
    assert json.loads(path.read_text())["metrics"] == {"fid": None, "kid": None}


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_result(path, result(fid=1.0))

    def full_disk(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_result(path, result(fid=2.0))
    assert json.loads(path.read_text())["metrics"] == {"fid": 1.0}


def test_versions_name_what_the_figures_depend_on():
    assert {"python", "wvq", "torch", "torch-fidelity"} <= set(library_versions())
