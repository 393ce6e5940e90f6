"""Loader processes of a run: signals from outside do not end them, the end of their run does."""

import subprocess
import sys

from torch.utils.data import DataLoader

from wvq.interruption import end_with_parent_only

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


def test_a_program_ends_though_loader_processes_are_still_there():
    assert subprocess.run([sys.executable, "-c", HELD], timeout=60, check=False).returncode == 0
