"""A working folder is taken up by the same task alone, and never made among other files."""

import json

import pytest

from wvq.errors import ConfigError
from wvq.files.names import IDENTITY_NAME
from wvq.files.work_folder import claim_work_folder


def claim(folder, identity, **options):
    claim_work_folder(folder, identity, task="an export", output="output folder", **options)


def test_the_same_task_goes_on_and_another_is_named(tmp_path):
    identity = {"seed": 0, "sizes": (1, 2), "model": {"dim": 4, "name": "a"}}
    claim(tmp_path / "w", identity)
    (tmp_path / "w" / "data").touch()
    claim(tmp_path / "w", identity)  # a tuple is a list when it is read back
    with pytest.raises(ConfigError, match=r"w was left by an export with another seed \(0, now 1\); finish that one"):
        claim(tmp_path / "w", identity | {"seed": 1})
    with pytest.raises(ConfigError, match=r"another model\.dim \(4, now 8\).* choose another output folder"):
        claim(tmp_path / "w", identity | {"model": {"dim": 8, "name": "a"}})
    with pytest.raises(ConfigError, match=r"another crops \(None, now 2\)"):
        claim(tmp_path / "w", identity | {"crops": 2})


def test_what_an_earlier_version_wrote_is_accepted_with_a_warning(tmp_path):
    claim(tmp_path / "w", {"weights": "old", "seed": 0})
    now, former = {"weights": "new", "seed": 0}, {"weights": "old"}
    with pytest.warns(UserWarning, match="of an earlier version"):
        claim(tmp_path / "w", now, former=former)
    with pytest.raises(ConfigError, match="another weights"):
        claim(tmp_path / "w", now, former={"weights": "other"})
    with pytest.warns(UserWarning, match="earlier version"), pytest.raises(ConfigError, match="another seed"):
        claim(tmp_path / "w", now | {"seed": 1}, former=former)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / ".hidden").touch()
    claim(tmp_path, {"seed": 0})
    assert json.loads((tmp_path / IDENTITY_NAME).read_text()) == {"seed": 0}
    (tmp_path / IDENTITY_NAME).rename(tmp_path / "mine.json")
    with pytest.raises(ConfigError, match="holds other files; move them away, or choose another output folder"):
        claim(tmp_path, {"seed": 0})
