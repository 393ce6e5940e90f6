"""A command that fails under a launcher: its line comes once from all processes, and stands last in what is printed."""

import json

import pytest

from tests.processes import run, run_ranks
from wvq.app.failures import fail


@pytest.fixture
def as_rank(monkeypatch, tmp_path):
    """A function that makes this process one of those that a launcher has started."""

    def become(rank):
        file = tmp_path / "attempt_0" / str(rank) / "error.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        return file

    return become


def failed(problem, capsys):
    with pytest.raises(SystemExit) as caught:
        fail("wvq info", problem)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_alone_it_is_said_each_time(monkeypatch, capsys):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    for _ in range(2):
        assert failed("no such\nfile", capsys) == "wvq info: error: no such file\n"


def test_processes_of_one_launch_say_the_same_once(as_rank, capsys):
    as_rank(1)
    assert failed("no such file", capsys) == "wvq info: error: no such file\n"
    file = as_rank(0)
    assert failed("no such file", capsys) == ""
    assert json.loads(file.read_text())["message"]["message"] == "wvq info: error: no such file"
    assert failed("another", capsys) == "wvq info: error: another\n"
    as_rank(1)
    assert failed("no such file", capsys) == "wvq info: error: no such file\n"  # a second command of that process


def test_a_launcher_whose_folder_is_gone_is_no_hindrance(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/proc/none/0/error.json")
    assert failed("no such file", capsys) == "wvq info: error: no such file\n"


@pytest.mark.parametrize("launcher", ["accelerate.commands.launch", "torch.distributed.run"])
def test_two_processes_leave_their_line_once_and_last(launcher):
    how = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    how = how if "accelerate" in launcher else ["--nproc_per_node", "2", "--master_port", "0"]
    # An unknown option fails before torch is imported.
    command = ["-m", launcher, *how, "-m", "wvq", "train-tokenizer", "--train.imges=1"]
    done = run(command, 240, {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1  # the launcher's own, whatever its processes ended with
    line = 'wvq train-tokenizer: error: unknown option train.imges (did you mean "train.images"?)'
    lines = done.stderr.splitlines()
    assert lines.count(line) == 1
    shown = [text for text in lines if text.strip("=")]
    assert shown[-1] == f"  traceback : {line}"
    assert "exitcode  : 2" in done.stderr


ONE_RANK_FAILS = """
import sys
from wvq.app import cli
from wvq.distributed import process_rank, processes, wait_for_all
from wvq.errors import DataError

def work(values):
    processes()
    if sys.argv[1] == "later":
        wait_for_all()
    if process_rank() == 1:
        raise DataError("a picture is missing")
    wait_for_all()

command = cli.COMMANDS["info"]
cli.COMMANDS["info"] = type(command)("info", command.help, command.add_arguments, work)
sys.exit(cli.main(["info", "somewhere"]))
"""


@pytest.mark.parametrize("when", ["before the first wait", "later"])
def test_processes_that_wait_for_one_that_failed_end_with_a_line(when):
    waiting, failing = run_ranks(["-c", ONE_RANK_FAILS, when])
    assert (waiting.returncode, failing.returncode) == (1, 2)
    assert "wvq info: error: a picture is missing" in failing.stderr.splitlines()
    assert "wvq info: another process of this run has ended" in waiting.stderr.splitlines()
    assert "Traceback" not in waiting.stderr


ONE_FAILS = """
import sys
from wvq.app import cli
from wvq.distributed import is_main_process, processes, wait_for_all
from wvq.errors import ConfigError

def run(values):
    processes()
    wait_for_all()
    if is_main_process():
        raise ConfigError("the first one alone fails")
    wait_for_all()

command = cli.COMMANDS["info"]
cli.COMMANDS["info"] = type(command)("info", command.help, command.add_arguments, run)
sys.exit(cli.main(["info", "x"]))
"""


def test_where_the_first_process_fails_alone_the_others_end_with_a_line(tmp_path):
    (tmp_path / "one_fails.py").write_text(ONE_FAILS)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "one_fails.py")]
    done = run(command, 240, {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines.count("wvq info: error: the first one alone fails") == 1
    assert "[rank1]" not in done.stderr
    assert done.stderr.count("Traceback") == 1  # the launcher's own
    # The launcher names whichever process ended first; one that has only lost the other leaves no traceback with it.
    last = [text for text in lines if text.strip("=")][-1]
    assert last.startswith(("  traceback : wvq info: error: the first one alone fails", "  traceback : To enable"))
