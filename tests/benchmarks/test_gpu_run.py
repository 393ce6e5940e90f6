"""The real run for a GPU, in tiny: its stages, a run in several parts, what its state holds."""

import json
import os
import signal

import pytest
import torch

from benchmarks import gpu_run, gpu_state
from tests.drawings import write_pictures
from wvq.errors import ConfigError
from wvq.training.progress import Progress

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
LONG = 3600.0
TIMES = ("seconds", "images_per_second", "loader_images_per_second")


@pytest.fixture(autouse=True)
def _two_methods(monkeypatch):
    monkeypatch.setattr(gpu_run, "METHODS", {"sliced": 0.02, "vanilla": None})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    write_pictures(folder, per_class=20)
    return str(folder)


def study(pictures, out, work, **options):
    return gpu_run.Study(pictures, out, work, options.pop("seconds", LONG), gpu_run.TINY, **options)


def without_times(results):
    """What does not depend on the machine's speed."""
    if isinstance(results, dict):
        return {name: without_times(value) for name, value in results.items() if name not in (*TIMES, "runs")}
    return results


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """Out and work folder of an uninterrupted run, and its results."""
    out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_run, "METHODS", {"sliced": 0.02, "vanilla": None})
        return out, work, study(pictures, out, work).run(out)


def test_a_run_makes_tokenizers_a_generator_and_samples(whole):
    out, _, results = whole
    assert results == json.loads((out / gpu_run.RESULTS).read_text())
    assert results["left"] == []
    assert list(results["tokenizers"]) == ["sliced", "vanilla"]
    for row in results["tokenizers"].values():
        assert row["images"] == 112  # two epochs of 54 pictures, in batches of 16
        assert {"psnr_rgb", "ssim", "utilization", "fd_efficientnet_lite0", "kd_efficientnet_lite0"} <= set(row)
        assert set(row["floor"]) == {"fd_efficientnet_lite0", "kd_efficientnet_lite0"}
        assert row["loader_images_per_second"] > 0
    generator = results["generator"]
    psnr = {name: row["psnr_rgb"] for name, row in results["tokenizers"].items()}
    assert generator["over"] == max(psnr, key=psnr.get)
    assert {"1", "1.5"} == set(generator["guidance"])
    assert set(generator["guidance"]["1"]) == set(generator["floor"]) == set(generator["decoded"])
    assert (out / "samples.png").stat().st_size > 0
    assert results["packed"] == [generator["over"]]


def test_the_learning_rate_of_the_codebook_is_the_methods_own(pictures, tmp_path):
    made = study(pictures, tmp_path, tmp_path, overrides={"train.learning_rate": 1e-3})
    sliced, vanilla = made.tokenizer_recipe("sliced"), made.tokenizer_recipe("vanilla")
    assert (sliced.train.codebook_learning_rate, vanilla.train.codebook_learning_rate) == (0.02, None)
    assert (sliced.model["quantizer"], sliced.train.learning_rate) == ("sliced", 1e-3)
    full = gpu_run.Study(pictures, tmp_path, tmp_path, LONG).tokenizer_recipe("sliced")
    assert (full.train.batch_size, full.train.images, full.model["num_codes"]) == (128, 50 * 54, 16_384)


def cut_after(monkeypatch, images):
    """A SIGTERM, as the clock sends it, once a training has seen so many pictures."""
    end_step = Progress.end_step

    def end(self):
        end_step(self)
        if self.images_seen == images:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "end_step", end)


def test_runs_that_were_cut_make_the_result_of_one(whole, pictures, tmp_path, monkeypatch):
    _, work, expected = whole
    with monkeypatch.context() as patch:
        cut_after(patch, 48)
        first = study(pictures, tmp_path / "1", tmp_path / "work_1").run(tmp_path / "1")
        assert first["tokenizers"] == {}
        assert first["packed"] == ["sliced"]
        assert first["left"][0] == {"stage": "sliced", "images": 48, "of": 108}
        cut_after(patch, 80)  # of the first tokenizer again
        second = study(pictures, tmp_path / "2", tmp_path / "work_2").run(tmp_path / "1")
        assert second["left"][0]["images"] == 80
    with monkeypatch.context() as patch:
        patch.setattr(gpu_run.Study, "left", property(lambda self: gpu_run.LEAST_FOR_GENERATOR - 1))
        third = study(pictures, tmp_path / "3", tmp_path / "work_3").run(tmp_path / "2")
        assert [row["stage"] for row in third["left"]] == ["generator"]
    fourth = study(pictures, tmp_path / "3", tmp_path / "work_4").run(tmp_path / "3")
    assert len(fourth["runs"]) == 4
    best = fourth["generator"]["over"]
    for model in (best, "pipeline/generator"):
        weights = [(folder / model / "model.safetensors").read_bytes() for folder in (work, tmp_path / "work_4")]
        assert weights[0] == weights[1]
    assert without_times(fourth) == without_times(expected)


def test_a_state_without_room_starts_the_training_anew(pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        cut_after(patch, 48)
        cut = study(pictures, tmp_path / "1", tmp_path / "work_1", limit=1_000).run(tmp_path / "1")
    assert cut["packed"] == []
    assert cut["left"][0] == {"stage": "sliced", "images": 0, "of": 108}
    assert [file.name for file in (tmp_path / "1").iterdir()] == [gpu_run.RESULTS]


def test_the_last_run_leaves_out_tokenizers_for_the_generator(pictures, tmp_path, monkeypatch):
    """There is the time for the generator, but not for another tokenizer before it."""
    monkeypatch.setattr(gpu_run.Study, "left", property(lambda self: gpu_run.LEAST_FOR_GENERATOR + 1e-9))
    results = study(pictures, tmp_path, tmp_path / "work", last=True).run(tmp_path)
    assert list(results["tokenizers"]) == ["sliced"]
    assert results["generator"]["over"] == "sliced"
    (left,) = results["left"]
    assert left["stage"] == "vanilla"
    assert left["seconds_left"] > 0


def test_a_state_of_another_run_is_refused(whole, pictures, tmp_path):
    other = study(pictures, tmp_path, tmp_path / "work", overrides={"train.learning_rate": 1e-3})
    with pytest.raises(ConfigError, match=r"another set.train.learning_rate .*; give another --state") as raised:
        other.run(whole[0])
    assert "\n" not in str(raised.value)


def test_a_clock_that_has_run_out_starts_nothing(pictures, tmp_path):
    results = study(pictures, tmp_path, tmp_path / "work", seconds=0.0).run(tmp_path)
    assert results["tokenizers"] == {}
    assert [row["images"] for row in results["left"][:2]] == [0, 0]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_overrides_are_read_as_yaml():
    assert gpu_run.overrides_of(["train.compile=true", "train.learning_rate=0.1"]) == {
        "train.compile": True,
        "train.learning_rate": 0.1,
    }
    with pytest.raises(ConfigError, match=r"--set train.compile lacks a value"):
        gpu_run.overrides_of(["train.compile"])


# ---- the packed state


def test_folders_come_back_from_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_state, "PIECE", 1_000)
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    content = torch.randint(0, 256, (5_000,), dtype=torch.uint8).numpy().tobytes()
    (root / "a" / "b" / "weights").write_bytes(content)
    assert gpu_state.pack(root, ["a", "missing"], tmp_path / "out", 10**6) == ["a"]
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) > 5
    assert {file.stat().st_size for file in files[:-1]} == {1_000}
    gpu_state.unpack(tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "again" / "a" / "b" / "weights").read_bytes() == content


def test_the_last_folders_are_left_out_where_there_is_no_room(tmp_path):
    root = tmp_path / "root"
    for name in ("first", "second"):
        (root / name).mkdir(parents=True)
        (root / name / "weights").write_bytes(torch.randint(0, 256, (3_000,), dtype=torch.uint8).numpy().tobytes())
    assert gpu_state.pack(root, ["first", "second"], tmp_path / "out", 5_000) == ["first"]
    assert gpu_state.pack(root, ["first", "second"], tmp_path / "out", 100) == []
    assert list((tmp_path / "out").iterdir()) == []
    gpu_state.unpack(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()
