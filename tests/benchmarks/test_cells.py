"""Cells of a study that was cut short."""

from __future__ import annotations

from benchmarks.cells import goes_on


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path):
    run = tmp_path / "run"
    (run / "training" / "checkpoints" / "000000000032").mkdir(parents=True)
    (run / "recipe.yaml").write_text("out: run\n")
    assert goes_on(run)
    assert (run / "recipe.yaml").exists()


def test_a_run_that_was_cut_before_its_first_checkpoint_starts_again(tmp_path):
    run = tmp_path / "run"
    (run / "training").mkdir(parents=True)
    (run / "recipe.yaml").write_text("out: run\n")
    assert not goes_on(run)
    assert not run.exists()


def test_what_is_no_run_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert not goes_on(tmp_path)
    assert not goes_on(tmp_path / "nothing")
    assert (tmp_path / "notes.txt").exists()
