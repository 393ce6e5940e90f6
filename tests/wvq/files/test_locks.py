"""One writer a folder: a second run is refused at once, and nothing stays locked by a process that is gone."""

import signal

import pytest

from tests.processes import run
from wvq.errors import ConfigError
from wvq.files import locks
from wvq.files.locks import sole_writer


def test_a_second_writer_is_refused_and_nothing_is_left(tmp_path):
    folder = tmp_path / "deep" / "run"
    line = r"run is being written by another run \(process \d+ on .+\); wait"
    with sole_writer(folder):
        with pytest.raises(ConfigError, match=line), sole_writer(folder):
            pytest.fail("two writers")
        with sole_writer(tmp_path / "deep" / "other"):
            pass
    assert list(tmp_path.iterdir()) == []  # nor the folder that was made for the locks
    with sole_writer(folder):  # free again
        pass


def test_an_error_inside_frees_the_folder(tmp_path):
    with pytest.raises(KeyError), sole_writer(tmp_path / "run"):
        raise KeyError
    with sole_writer(tmp_path / "run"):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from wvq.files.locks import sole_writer\n"
        "with sole_writer(sys.argv[1]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run(["-c", script, tmp_path / "run"]).returncode == -signal.SIGKILL
    assert (tmp_path / ".run.lock").exists()
    with sole_writer(tmp_path / "run"):
        pass
    assert not (tmp_path / ".run.lock").exists()


def test_systems_without_locks_hold_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with sole_writer(tmp_path / "run"), sole_writer(tmp_path / "run"):
        pass

    class NoLocks:
        LOCK_EX = LOCK_NB = 0

        def flock(self, *_):
            raise OSError("no locks on this file system")

    monkeypatch.setattr(locks, "fcntl", NoLocks())
    with sole_writer(tmp_path / "run"), sole_writer(tmp_path / "run"):
        pass


def test_two_runs_on_one_folder(tiny_tokenizer_recipe, tmp_path):
    from wvq.tokenizer.train import train_tokenizer

    with sole_writer(tmp_path / "t"), pytest.raises(ConfigError, match="t is being written by another run"):
        train_tokenizer(tiny_tokenizer_recipe(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_a_file_that_is_no_lock_stays_as_it_is(tmp_path):
    (tmp_path / ".poetry.lock").write_text("# @generated")
    with (
        pytest.raises(ConfigError, match=r"\.poetry\.lock is in the way of the lock"),
        sole_writer(tmp_path / "poetry"),
    ):
        pytest.fail("taken")
    assert (tmp_path / ".poetry.lock").read_text() == "# @generated"
