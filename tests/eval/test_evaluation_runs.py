"""`wvq evaluate` in processes of its own: on two of them, and after its process was killed."""

import json
import signal
from pathlib import Path

import pytest

from tests.processes import run_ranks
from tests.tiny import make_pipeline

WORKER = Path(__file__).with_name("evaluation_worker.py")


@pytest.fixture(scope="module")
def pipeline_dir(tiny_tokenizer_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "pipeline"
    make_pipeline(tiny_tokenizer_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(pipeline_dir, picture_folder):
    def start(home: Path, kill_at=0, world=1, task="generation"):
        options = [f"--data.path={picture_folder}", "--data.image_size=16", f"--out={home / 'result.json'}"]
        if task == "generation":
            arguments = [str(pipeline_dir), "--num_images=12", "--batch_size=4", f"--save-samples={home / 'pngs'}"]
        else:
            arguments = [str(pipeline_dir / "tokenizer"), "--batch_size=2", "--data.validation_fraction=0.2"]
        arguments = ["evaluate", task, *arguments, *options]
        settings = json.dumps({"arguments": arguments, "kill_at": kill_at, "world": world})
        return run_ranks([WORKER, settings], world, variables={"WVQ_CACHE": str(home / "cache")})

    return start


@pytest.fixture(scope="module")
def whole_reconstruction(run, tmp_path_factory):
    """The same of a tokenizer."""
    home = tmp_path_factory.mktemp("reconstructed")
    (done,) = run(home, task="reconstruction")
    assert done.returncode == 0, done.stderr[-3000:]
    return home


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The folder of an evaluation on one process that was not disturbed."""
    home = tmp_path_factory.mktemp("whole")
    (done,) = run(home)
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def result(home):
    return json.loads((home / "result.json").read_text())


def assert_same_figures(home, whole, rel=None):
    measured, expected = result(home), result(whole)
    for name in ("metrics", "floor"):
        for metric, value in expected[name].items():
            assert measured[name][metric] == (value if rel is None else pytest.approx(value, rel=rel, abs=1e-9)), metric
    for name in ("num_images", "num_reference", "num_floor", "warnings"):
        assert measured[name] == expected[name]
    assert measured["settings"]["reference"] == expected["settings"]["reference"]
    assert not (home / "result.json.partial").exists()


def assert_alike(home, whole, rel=None):
    assert_same_figures(home, whole, rel)
    assert result(home)["settings"]["samples"] == result(whole)["settings"]["samples"]  # the very same pictures
    pictures = [{file.name: file.read_bytes() for file in (side / "pngs").iterdir()} for side in (home, whole)]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 12


def test_two_processes_measure_the_same_pictures(run, whole, tmp_path):
    ranks = run(tmp_path, world=2)
    assert [done.returncode for done in ranks] == [0, 0], ranks[0].stderr[-3000:] + ranks[1].stderr[-3000:]
    assert_alike(tmp_path, whole, rel=1e-6)
    assert sum(done.stdout.count("result in") for done in ranks) == 1


def test_a_killed_evaluation_goes_on_and_ends_alike(run, whole, tmp_path):
    for kill_at in (2, 7):  # among the real pictures, then, with those that are there, among the samples
        (killed,) = run(tmp_path, kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "result.json.partial").exists()
    (done,) = run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_alike(tmp_path, whole)


def test_two_processes_measure_the_same_reconstructions(run, whole_reconstruction, tmp_path):
    ranks = run(tmp_path, world=2, task="reconstruction")
    assert [done.returncode for done in ranks] == [0, 0], ranks[0].stderr[-3000:] + ranks[1].stderr[-3000:]
    assert_same_figures(tmp_path, whole_reconstruction, rel=1e-6)
    assert result(tmp_path)["num_tokens"] == result(whole_reconstruction)["num_tokens"] == 12 * 16
    assert sum(done.stdout.count("result in") for done in ranks) == 1


def test_a_killed_measurement_of_a_tokenizer_goes_on(run, whole_reconstruction, tmp_path):
    (killed,) = run(tmp_path, kill_at=9, task="reconstruction")  # 6 files of real pictures, then reconstructions
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert len(list((tmp_path / "result.json.partial").glob("*.safetensors"))) == 2
    (done,) = run(tmp_path, task="reconstruction")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_figures(tmp_path, whole_reconstruction)
