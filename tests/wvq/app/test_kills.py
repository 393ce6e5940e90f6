"""SIGKILL while a cache, samples or a pipeline are written: nothing half-written is read, and a rerun ends alike."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.processes import run
from tests.tiny import make_pipeline
from wvq.data.codes import CodeDataset
from wvq.errors import CacheError, CheckpointError
from wvq.pipelines.image_generation import ImageGenerationPipeline

WORKER = Path(__file__).with_name("kill_worker.py")


def work(**settings):
    return run([WORKER, json.dumps(settings)])


def killed(**settings):
    done = work(**settings)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def finished(**settings):
    done = work(**settings)
    assert done.returncode == 0, done.stderr[-2000:]


def contents(folder):
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def pipeline_dir(tiny_tokenizer_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "pipeline"
    make_pipeline(tiny_tokenizer_dir).save_pretrained(folder)
    return folder


def test_export(tiny_tokenizer_dir, picture_folder, tmp_path):
    def command(out):
        data = ["--data.path", str(picture_folder), "--data.image_size", "16"]
        return ["export-codes", *data, "--tokenizer", str(tiny_tokenizer_dir), "--out", str(tmp_path / out)]

    finished(arguments=command("whole"))
    # Naming the folder's owner; a file, its mark, another file; the tables; the cache itself.
    for kill_at in (1, 2, 2, 2, 3, 8):
        killed(arguments=command("codes"), kill_at=kill_at)
        with pytest.raises(CacheError):
            CodeDataset(tmp_path / "codes", "train")
    finished(arguments=command("codes"))
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "codes"}


def test_samples(pipeline_dir, tmp_path):
    def command(out):
        return ["sample", str(pipeline_dir), "--class", "circle", "--num_images", "5", "--out", str(tmp_path / out)]

    finished(arguments=command("whole"))
    killed(arguments=command("samples"), kill_at=4)  # the job, two pictures, and amid the third
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 2
    finished(arguments=[*command("samples"), "--resume"])
    whole, again = contents(tmp_path / "whole"), contents(tmp_path / "samples")
    assert {name: again[name] for name in whole} == whole


def test_pipeline(pipeline_dir, tmp_path):
    target = tmp_path / "copy"
    for kill_at in (1, 2, 2):  # at the tokenizer; at the generator after it; at the index, with both parts there
        killed(pipeline=str(pipeline_dir), save=str(target), kill_at=kill_at)
        with pytest.raises(CheckpointError):
            ImageGenerationPipeline.from_pretrained(target)
    finished(pipeline=str(pipeline_dir), save=str(target))
    whole, again = contents(pipeline_dir), contents(target)
    assert {name: again[name] for name in whole} == whole
    shutil.rmtree(target)
