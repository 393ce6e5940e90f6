"""Loader processes of a run: signals from outside do not end them, the end of their run does."""

import os
import signal
import subprocess
import time

import pytest
from torch.utils.data import DataLoader

from tests.processes import Program, run
from wvq.data.codes import CodeHeader
from wvq.interruption import RunInterrupted, end_with_parent_only, stop_on_signal

HELD = """
from torch.utils.data import DataLoader
from wvq.interruption import end_with_parent_only
batches = iter(DataLoader(range(100), 4, num_workers=2, worker_init_fn=end_with_parent_only))
next(batches)
cycle = [batches]
cycle.append(cycle)  # alive until the interpreter ends, as in the traceback of an error
"""


def test_sigterm_from_outside_leaves_the_last_batches_to_the_run():
    batches = iter(DataLoader(range(100), 4, num_workers=1, worker_init_fn=end_with_parent_only))
    next(batches)
    (worker,) = batches._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(batches)) == 24


def test_a_signal_may_end_the_block_at_once():
    with stop_on_signal(at_once=lambda: "half is there") as request:
        with pytest.raises(RunInterrupted, match="stopped by SIGTERM; half is there") as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.signal == request.signal == signal.SIGTERM


EXPORT = """
import sys, time
from wvq.app.cli import main
from wvq.tokenizer import export, export_work
export_work.FEWEST = 8
codes, done = export._codes, []
def slow(*args):
    done.append(1)
    if len(done) == 4:
        print("in the fourth", flush=True)
        time.sleep(100)
    return codes(*args)
export._codes = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sigterm_ends_an_export_with_one_line_and_the_same_command_goes_on(
    num_workers, tiny_tokenizer_dir, picture_folder, tmp_path
):
    command = ["export-codes", f"--data.path={picture_folder}", "--data.image_size=16", f"--num_workers={num_workers}"]
    command += [f"--tokenizer={tiny_tokenizer_dir}", f"--out={tmp_path / 'codes'}"]
    program = Program(["-c", EXPORT, *command])
    while not program.stdout.endswith("in the fourth\n"):
        assert not program.ended, program.stderr
        time.sleep(0.01)
    os.kill(program.pid, signal.SIGTERM)
    done = program.wait()
    assert done.returncode == 128 + signal.SIGTERM
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("wvq export-codes")]
    assert "stopped by SIGTERM; 3 of 8 files of codes are complete" in line
    assert "an export with the same settings goes on from there" in line
    assert "Traceback" not in done.stderr
    again = run(["-c", EXPORT.replace("== 4", "== 6"), *command])  # five batches are missing
    assert again.returncode == 0, again.stderr
    assert CodeHeader.read(tmp_path / "codes").num_images == {"train": 54, "validation": 6}


def test_a_program_ends_though_loader_processes_are_still_there():
    assert run(["-c", HELD]).returncode == 0
