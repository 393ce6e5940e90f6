"""The frame of a stage: what it holds, trains, saves, goes on with, and leaves behind."""

import json
import os
import signal
from dataclasses import dataclass, field

import pytest

from tests.wvq.training.regression import Regression, trainer
from wvq.errors import ConfigError
from wvq.files.fingerprint import DataFingerprint, PictureSketch
from wvq.interruption import RunInterrupted
from wvq.settings.train import TrainConfig
from wvq.training.stage import claimed_stage

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@dataclass
class Recipe:
    """Of a stage whose settings do not matter here."""

    train: TrainConfig = field(default_factory=TrainConfig)


def train(out, resume=False, **settings):
    with claimed_stage(out, Recipe(), resume) as stage:
        if stage.finished is not None:
            return stage.finished
        return stage.train(trainer(stage.folder, **settings), parameters=4)


def files(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_stage_leaves_its_model_its_recipe_and_its_result(tmp_path):
    result = train(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert list(result)[-1] == "parameters"
    assert {"weight", "images", "parameters"} <= result.keys()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"model.safetensors", "recipe.yaml", "result.json", "training"}
    assert (tmp_path / "run" / "training" / "log.jsonl").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no lock is left


def test_a_stage_that_has_ended_gives_its_result_and_stays_as_it_is(tmp_path):
    result = train(tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.warns(UserWarning, match="has come to its end"):
        assert train(tmp_path / "run", resume=True, images=800) == result
    assert files(tmp_path / "run") == before


def test_a_stage_holds_its_folder(tmp_path):
    with claimed_stage(tmp_path / "run", Recipe(), resume=False):
        before = files(tmp_path)
        with (
            pytest.raises(ConfigError, match="is being written by another run"),
            claimed_stage(tmp_path / "run", Recipe(), resume=True),
        ):
            pass
        assert files(tmp_path) == before


def test_a_folder_in_use_is_refused(tmp_path):
    train(tmp_path / "run")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="already holds a run; pass --resume"):
        train(tmp_path / "run")
    assert files(tmp_path) == before


def refuse(stage, names) -> None:
    """Fail as a stage that does not fit into memory, after it has written these files."""
    assert {path.name for path in stage.out.iterdir()} == names
    raise ConfigError("too large")


@pytest.mark.parametrize("kept", [[], ["notes.txt"]])
def test_a_start_that_fails_before_its_training_leaves_nothing(kept, tmp_path):
    for name in kept:
        (tmp_path / "runs" / "run").mkdir(parents=True)
        (tmp_path / "runs" / "run" / name).write_text("mine")
    before = files(tmp_path)
    fingerprint = DataFingerprint(PictureSketch.of(["a"]), PictureSketch.of(["b"]))
    with (
        pytest.raises(ConfigError, match="too large"),
        claimed_stage(tmp_path / "runs" / "run", Recipe(), resume=False, fingerprint=fingerprint) as stage,
    ):
        refuse(stage, {*kept, "recipe.yaml", "training", "data_fingerprint.json"})
    assert files(tmp_path) == before
    assert (tmp_path / "runs").exists() == bool(kept)
    train(tmp_path / "runs" / "run")


def test_a_resume_that_fails_before_its_training_leaves_the_run(tmp_path):
    train(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()  # so that it has not come to its end
    before = files(tmp_path)
    with (
        pytest.raises(ConfigError, match="too large"),
        claimed_stage(tmp_path / "run", Recipe(), resume=True) as stage,
    ):
        refuse(stage, {"recipe.yaml", "result.json", "training"})
    assert files(tmp_path) == before


def test_an_interrupted_stage_has_no_result_until_it_is_resumed(tmp_path, monkeypatch):
    expected = train(tmp_path / "whole")
    loss = Regression.loss

    def interrupted(self, model, batch, images_seen, progress):
        if images_seen == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch, images_seen, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Regression, "loss", interrupted)
        with pytest.raises(RunInterrupted, match="stopped by SIGTERM; checkpoint saved in"):
            train(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.yaml", "training"}
    result = train(tmp_path / "run", resume=True)
    clocks = ("seconds", "images_per_second")
    assert {k: v for k, v in result.items() if k not in clocks} == {
        k: v for k, v in expected.items() if k not in clocks
    }


def test_a_model_that_cannot_be_saved_leaves_no_result(tmp_path, monkeypatch):
    def full(self, model, folder):
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Regression, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.yaml", "training"}
