"""Files and folders appear whole or not at all, and only what a process of ours left is removed."""

import json
import os
import re
import subprocess
import sys

import pytest

from wvq.files.atomic import remove_files, whole_folder, write_json, write_text
from wvq.files.locks import host_digest


def test_text_files_appear_whole(tmp_path):
    file = tmp_path / "deeper" / "note.txt"
    write_text(file, "first")
    write_text(file, "zweite Fassung, größer")
    assert file.read_text(encoding="utf-8") == "zweite Fassung, größer"
    assert [path.name for path in file.parent.iterdir()] == ["note.txt"]


def test_json_files_keep_their_old_text_if_a_value_cannot_be_written(tmp_path):
    write_json(tmp_path / "a.json", {"name": "größer", "values": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "größer", "values": [1, 2.5, None]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["name"] == "größer"


def test_a_whole_folder_takes_its_name_at_the_end(tmp_path):
    target = tmp_path / "deeper" / "codes"
    with whole_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["codes"]


def test_a_whole_folder_replaces_an_empty_one_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as folder:
        (folder / "a.txt").write_text("new")
    assert (tmp_path / "empty" / "a.txt").exists()
    with pytest.raises(OSError), whole_folder(tmp_path / "empty") as folder:  # noqa: PT011
        (folder / "a.txt").write_text("newer")
    assert (tmp_path / "empty" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_failed_block_leaves_no_folder(tmp_path):
    def fail():
        with whole_folder(tmp_path / "codes") as folder:
            (folder / "a.txt").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_a_folder_of_the_users_stays(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [tmp_path / f".codes.{number}-{host_digest()}-0123abcd.partial" for number in (gone.pid, os.getpid())]
    elsewhere = tmp_path / f".codes.{gone.pid}-00000000-0123abcd.partial"  # of a machine that shares the disk
    mine = [tmp_path / name for name in (".codes.partial", ".codes.old.partial", ".codes.77.partial")]
    for folder in (*left, elsewhere, *mine):
        folder.mkdir()
        (folder / "old.txt").write_text("old")
    with whole_folder(tmp_path / "codes") as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in (tmp_path / "codes").iterdir()] == ["new.txt"]
    assert not left[0].exists()
    assert all((folder / "old.txt").exists() for folder in (left[1], elsewhere, *mine))


def test_removing_files_by_name_leaves_the_others(tmp_path):
    for name in ("a-1", "a-2/b", "ba-1", "a-1.txt"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text("x")
    remove_files(tmp_path / "f", re.compile(r"a-\d"))
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["a-1.txt", "ba-1"]
    remove_files(tmp_path / "f", re.compile(r".*"))
    assert not (tmp_path / "f").exists()
    remove_files(tmp_path / "f", re.compile(r".*"))  # not there
