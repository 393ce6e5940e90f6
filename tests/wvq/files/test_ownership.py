"""Folders that only their user can change."""

import os
import stat

import pytest

from wvq.files.ownership import private_folder, require_own_file


def test_is_made_for_its_user_alone(tmp_path):
    before = os.umask(0)
    try:
        folder = private_folder(tmp_path / "own")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert private_folder(folder) == folder


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_one_that_others_can_write_is_refused(mode, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(mode)
    with pytest.raises(PermissionError, match="not this user's alone"):
        private_folder(tmp_path / "own")


def test_so_is_one_in_a_folder_that_others_can_write_behind_links_too(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    for place in ("shared", "link"):
        with pytest.raises(PermissionError, match="which other users can change"):
            private_folder(tmp_path / place / "own")
    (tmp_path / "shared").chmod(0o1777)  # as /tmp
    assert private_folder(tmp_path / "link" / "own") == tmp_path / "shared" / "own"


def test_a_users_own_file_is_regular_and_for_writing_by_none_else(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    require_own_file(file)
    (tmp_path / "link").symlink_to(file)
    for wrong in (tmp_path / "link", tmp_path):
        with pytest.raises(PermissionError):
            require_own_file(wrong)
    file.chmod(0o666)
    with pytest.raises(PermissionError):
        require_own_file(file)
