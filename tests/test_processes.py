"""Forked programs are processes like any other: arguments, environment, output, exit code, signals, what they start."""

import contextlib
import os
import signal
import subprocess
import time

import psutil
import pytest

from tests.processes import Program, run, run_ranks


def test_a_program_has_arguments_folder_environment_and_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['HERE'], __name__); print('no', file=sys.stderr)"
    done = run(["-c", code, "a"], variables={"HERE": "there"})
    assert (done.returncode, done.stderr) == (0, "no\n")
    assert done.stdout == f"['-c', 'a'] {tmp_path} there __main__\n"


def test_a_file_and_a_module_are_run_too(tmp_path):
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    (tmp_path / "program.py").write_text("import sys, beside; sys.exit(sys.argv[1] + beside.NAME)")
    done = run([tmp_path / "program.py", "given "])
    assert (done.returncode, done.stderr) == (1, "given beside\n")
    assert run(["-m", "wvq", "--version"]).stdout.startswith("wvq ")


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(3)", 3), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_how_a_program_ended(code, expected):
    assert run(["-c", code]).returncode == expected


def test_a_signal_reaches_the_program():
    program = Program(["-c", "import time; print('here', flush=True); time.sleep(100)"])
    while program.stdout != "here\n":
        assert not program.ended
        time.sleep(0.01)
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait().returncode == -signal.SIGTERM


def test_a_program_that_hangs_is_ended_with_what_it_has_started():
    program = Program(["-c", "import os, time; os.fork(); print(os.getpid(), flush=True); time.sleep(100)"])
    while len(started := program.stdout.split()) < 2:
        assert not program.ended
        time.sleep(0.01)
    (other,) = {int(pid) for pid in started} - {program.pid}
    child = psutil.Process(other)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(timeout=0)
    assert program.wait().returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:  # until whoever adopted it has noticed
            time.sleep(0.01)


def test_each_rank_knows_its_own():
    code = "import os; print(*(os.environ[name] for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')))"
    assert [done.stdout for done in run_ranks(["-c", code])] == ["0 0 2\n", "1 1 2\n"]
    assert run_ranks(["-c", "import os; assert 'RANK' not in os.environ"], world=1)[0].returncode == 0


def test_where_a_rank_hangs_the_error_shows_why_another_failed():
    code = "import os, sys, time; sys.exit('no room') if os.environ['RANK'] == '0' else time.sleep(100)"
    with pytest.raises(AssertionError, match=r"(?s)timed out after 5 seconds.*no room"):
        run_ranks(["-c", code], timeout=5)
