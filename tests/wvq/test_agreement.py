"""Several processes wait without a time limit, act on what the first one decides, and stop after the same step."""

import signal
from types import SimpleNamespace

import pytest
import torch

from tests.processes import run_ranks
from wvq import distributed
from wvq.errors import ConfigError
from wvq.files.locks import sole_run, sole_writer
from wvq.interruption import PassInterrupted, StopAgreement, StopRequest
from wvq.training.checkpoints import save_checkpoint

START = """
import os, signal, sys, time
from pathlib import Path
from wvq import distributed
from wvq.distributed import decided_by_first_process, gather_objects, largest_later, processes, wait_for_all
from wvq.errors import ConfigError, WVQError
folder, rank = Path(sys.argv[1]), processes().process_index
assert processes().num_processes == 2
"""

A_LATE_PROCESS = """
if rank == 1:
    time.sleep(1)
    (folder / "done").touch()
wait_for_all()
assert (folder / "done").exists()
"""

A_PROCESS_THAT_ENDS = """
wait_for_all()
if rank == 1:
    os._exit(0)
try:
    wait_for_all()
except RuntimeError:
    os._exit(0)  # the group cannot be left
sys.exit("waited for a process that is gone")
"""

A_SIGNAL_WHILE_WAITING = """
came = []
signal.signal(signal.SIGTERM, lambda *_: came.append((folder / "done").exists()))
wait_for_all()
if rank == 0:
    (folder / str(os.getpid())).touch()
else:
    while not (waiting := [file.name for file in folder.iterdir()]):
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(int(waiting[0]), signal.SIGTERM)
    time.sleep(1)
    (folder / "done").touch()
wait_for_all()
assert came == ([False] if rank == 0 else []), came
"""

DECISIONS = """
seen = []
def decide():
    seen.append(rank)
    return folder / "of the first"
assert decided_by_first_process(decide) == folder / "of the first"
assert seen == [0] * (rank == 0)
def refuse():
    raise ConfigError("out: there is another run")
try:
    decided_by_first_process(refuse)
except WVQError as error:
    assert type(error) is ConfigError and str(error) == "out: there is another run"
    seen.append("refused")
assert seen[-1] == "refused"
answer = largest_later([rank, 5 - rank])
assert gather_objects("in between") == ["in between"] * 2
assert answer() == [1, 5]
"""

LEAVE = "\ndistributed.leave_processes()\n"
# One process ends with an error, as a command does, while the other waits for it: each keeps its own exit code.
DROP = """
wait_for_all()
try:
    if rank == 1:
        raise ConfigError("no")
    wait_for_all()
except (ConfigError, RuntimeError):
    pass
distributed.drop_processes()
assert distributed.world_size() == 1
"""


@pytest.mark.parametrize(
    "script",
    [A_LATE_PROCESS + LEAVE, A_PROCESS_THAT_ENDS, A_SIGNAL_WHILE_WAITING + LEAVE, DECISIONS + LEAVE, DROP],
)
def test_two_processes(script, tmp_path):
    for done in run_ranks(["-c", START + script, tmp_path]):
        assert done.returncode == 0, done.stderr


def test_whether_a_checkpoint_is_there_is_what_the_first_process_sees(tmp_path, monkeypatch):
    """As on a network file system: it is there for the first process, and not yet for this one."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "processes", lambda: None)
    monkeypatch.setattr(distributed, "process_rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather_objects", lambda _: [(True, None)])
    accelerator = SimpleNamespace(
        is_main_process=False,
        wait_for_everyone=lambda: pytest.fail("waits for the first process"),
        save_state=lambda _: pytest.fail("saves alone"),
    )
    target = save_checkpoint(accelerator, None, tmp_path, 64, keep=2)
    assert target == tmp_path / "checkpoints" / "000000000064"


def test_a_checkpoint_that_another_process_did_not_help_to_write_blames_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "processes", lambda: None)
    monkeypatch.setattr(distributed, "process_rank", lambda: 0)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value])

    def save_state(_):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:9841")

    with pytest.raises(RuntimeError, match="closed by peer") as caught:
        save_checkpoint(SimpleNamespace(save_state=save_state), None, tmp_path, 64, keep=2)
    assert distributed.is_lost_process(caught.value)


# ---- stopping after the same step


class Others:
    """In place of the other processes: which signal one of them has, and how long its steps take."""

    def __init__(self, monkeypatch, pace: float):
        self.signal, self.pace, self.rounds = 0, pace, 0
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "largest_later", self.largest_later)

    def largest_later(self, values):
        self.rounds += 1
        largest = [max(values[0], self.signal), max(values[1], self.pace)]
        return lambda: largest


@pytest.mark.parametrize(("pace", "most"), [(0.01, 400), (1.5, 2), (30.0, 1)])
def test_rounds_follow_the_pace_so_that_a_signal_is_acted_on_soon(pace, most, monkeypatch):
    others = Others(monkeypatch, pace)
    agreement = StopAgreement(StopRequest(), seconds=4.0)
    assert not any(agreement.after_step() for _ in range(5_000))
    assert others.rounds <= 5_000 / most + 20
    others.signal, steps = signal.SIGTERM, 1
    while not (came := agreement.after_step()):
        steps += 1
    assert came == signal.SIGTERM
    assert steps <= most + 2


def test_a_signal_between_agreement_and_action_waits_for_the_next_agreement(monkeypatch):
    Others(monkeypatch, 30.0)
    request = StopRequest()
    agreement = StopAgreement(request)
    assert agreement.after_step() == 0  # handed in: none
    request.signal = signal.SIGTERM
    assert agreement.after_step() == 0  # the answer to that, which the other processes have too
    assert agreement.after_step() == 0  # handed in
    assert agreement.after_step() == signal.SIGTERM
    assert agreement.settle() == 0


def test_an_answer_that_is_out_at_the_last_step_is_not_lost(monkeypatch):
    others = Others(monkeypatch, 30.0)
    others.signal = signal.SIGINT
    agreement = StopAgreement(StopRequest())
    assert agreement.after_step() == 0
    assert agreement.settle() == signal.SIGINT


def test_one_process_acts_at_once():
    request = StopRequest()
    agreement = StopAgreement(request)
    assert agreement.after_step() == agreement.settle() == 0
    request.signal = signal.SIGINT
    assert agreement.after_step() == signal.SIGINT


def test_a_pass_ends_early_at_a_signal():
    request, seen = StopRequest(), []
    assert list(request.until_set(range(3))) == [0, 1, 2]

    def look(item):
        seen.append(item)
        request.signal = signal.SIGTERM if item == 2 else 0

    with pytest.raises(PassInterrupted) as caught:
        list(map(look, request.until_set(range(10))))
    assert caught.value.signal == signal.SIGTERM
    assert seen == [0, 1, 2]


def test_a_pass_ends_everywhere_if_another_process_was_interrupted(monkeypatch):
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, int(signal.SIGTERM)])
    with pytest.raises(PassInterrupted):
        list(StopRequest().until_set([]))


def test_processes_leave_together_at_the_end_of_a_command(monkeypatch):
    done = []
    monkeypatch.setattr(distributed, "wait_for_all", lambda: done.append("waited"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("left"))
    distributed.leave_processes()
    assert done == []  # alone
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    distributed.leave_processes()
    assert done == ["waited", "left"]


def test_a_run_holds_its_folder_alone(tmp_path):
    held = pytest.raises(ConfigError, match="is being written by another run")
    with sole_writer(tmp_path / "run"), held, sole_run(tmp_path / "run"):
        pytest.fail("held twice")
    with sole_run(tmp_path / "run"):
        assert (tmp_path / ".run.lock").exists()
    assert not (tmp_path / ".run.lock").exists()
