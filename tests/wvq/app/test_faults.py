"""Runs that are killed, stopped or run out of disk, each in a process of its own: nothing is lost or half-written."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch

from tests.processes import run, run_ranks
from tests.tiny import TINY_TOKENIZER
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.training.checkpoints import find_checkpoints
from wvq.training.tracking import read_log

WORKER = Path(__file__).with_name("faults_worker.py")
STEPS = 14
# Everything that an exact resume must bring back: discriminator, average, moment window, data order, random numbers.
OPTIONS = [
    *[option for option in TINY_TOKENIZER if "quantizer" not in option and "train." not in option],
    "--model.quantizer=wasserstein",
    "--model.window_size=1000",
    "--model.dropout=0.1",
    "--data.image_size=16",
    "--data.crop=random",
    "--data.flip=true",
    "--discriminator.network=patchgan",
    "--discriminator.base_channels=8",
    "--discriminator.num_layers=1",
    "--discriminator.augment=true",
    "--discriminator.lecam_weight=0.001",
    "--discriminator.consistency_weight=0.1",
    "--discriminator.generator_start_images=64",
    "--discriminator.ramp_images=64",
    f"--train.images={STEPS * 16}",
    "--train.batch_size=16",
    "--train.ema_decay=0.9",
    "--train.codebook_learning_rate=0.02",
    "--train.save_every=48",
    "--train.log_every=16",
]


def command(folder, out, fault=None, resume=False, options=(), **settings):
    arguments = ["train-tokenizer", f"--data.path={folder}", f"--out={out}", *OPTIONS, *options]
    arguments += ["--resume"] if resume else []
    return [str(WORKER), json.dumps({"arguments": arguments, "fault": fault, **settings})]


def start(folder, out, fault=None, resume=False, **settings):
    return run(command(folder, out, fault, resume, **settings))


def rows(out):
    clock = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in clock} for row in read_log(out / "training")]


@pytest.fixture(scope="module")
def whole(picture_folder, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("faults") / "whole"
    done = start(picture_folder, out)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def assert_the_same_run(out, whole):
    assert rows(out) == rows(whole)
    a, b = (WassersteinVQModel.from_pretrained(folder).state_dict() for folder in (out, whole))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_run_killed_twice_repeats_the_uninterrupted_one_to_the_bit(picture_folder, whole, tmp_path):
    draw = random.Random(0)
    out = tmp_path / "run"
    first = start(picture_folder, out, "kill", step=draw.randint(4, 9))
    assert first.returncode == -signal.SIGKILL
    second = start(picture_folder, out, "kill_while_saving", resume=True, step=4)
    assert second.returncode == -signal.SIGKILL
    assert len(list((out / "training" / "checkpoints").glob("*.partial"))) == 1
    assert not (out / "model.safetensors").exists()
    last = start(picture_folder, out, resume=True)
    assert last.returncode == 0, last.stderr[-2000:]
    assert not list((out / "training" / "checkpoints").glob("*.partial"))
    assert_the_same_run(out, whole)


def test_sigterm_saves_and_ends_with_one_line(picture_folder, whole, tmp_path):
    out = tmp_path / "run"
    stopped = start(picture_folder, out, "terminate", step=7)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in stopped.stderr
    line = stopped.stderr.strip().splitlines()[-1]
    assert line.startswith("wvq train-tokenizer: stopped by SIGTERM; checkpoint saved in ")
    assert line.endswith("000000000112; the same command with --resume goes on from there")
    assert find_checkpoints(out / "training")[-1].name == "000000000112"
    done = start(picture_folder, out, resume=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_the_same_run(out, whole)


# A log line every 64 pictures: a stop and its checkpoint fall between two.
BETWEEN_LINES = ["--train.log_every=64", "--train.keep_checkpoints=9"]


@pytest.fixture(scope="module")
def whole_of_two(picture_folder, tmp_path_factory):
    """An uninterrupted run of two processes."""
    out = tmp_path_factory.mktemp("faults") / "two"
    for done in run_ranks(command(picture_folder, out, options=BETWEEN_LINES)):
        assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.parametrize(("fault", "rank", "step"), [("terminate", 1, 6), ("terminate_while_saving", 0, 9)])
def test_a_signal_to_one_process_of_two_stops_both_after_the_same_step(
    fault, rank, step, picture_folder, whole_of_two, tmp_path
):
    out, options = tmp_path / "run", BETWEEN_LINES
    for done in run_ranks(command(picture_folder, out, fault, step=step, rank=rank, options=options)):
        assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
        assert "stopped by SIGTERM; checkpoint saved in " in done.stderr
    stopped = int(find_checkpoints(out / "training")[-1].name)
    assert step * 16 <= stopped < STEPS * 16
    for done in run_ranks(command(picture_folder, out, resume=True, options=options)):
        assert done.returncode == 0, done.stderr[-2000:]
    assert_the_same_run(out, whole_of_two)


def test_a_full_disk_ends_with_one_line_and_leaves_the_last_good_checkpoint(picture_folder, whole, tmp_path):
    out = tmp_path / "run"
    full = start(picture_folder, out, "full_disk", step=8, limit=16_384)
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    line = full.stderr.strip().splitlines()[-1]
    assert "could not be written" in line
    assert line.endswith("000000000096; make room and resume")
    names = sorted(folder.name for folder in (out / "training" / "checkpoints").iterdir())
    assert names == ["000000000048", "000000000096"]
    done = start(picture_folder, out, resume=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_the_same_run(out, whole)


def test_when_one_process_of_two_dies_the_other_ends_soon(picture_folder, tmp_path):
    arguments = ["train-tokenizer", f"--data.path={picture_folder}", f"--out={tmp_path / 't'}", *OPTIONS]
    settings = json.dumps({"arguments": arguments, "fault": "kill", "step": 7, "rank": 1})
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    launched = run(
        ["-m", *launcher, WORKER, settings], variables={"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    )
    assert launched.returncode != 0
    assert "Signal 9 (SIGKILL)" in launched.stderr or "exitcode: -9" in launched.stderr, launched.stderr[-2000:]
    assert not (tmp_path / "t" / "model.safetensors").exists()
    resumed = start(picture_folder, tmp_path / "t", resume=True)  # on one process: from the last whole checkpoint
    assert resumed.returncode == 0, resumed.stderr[-2000:]
