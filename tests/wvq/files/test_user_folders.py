"""Where caches and compiled code go, for users with a home and without."""

import errno
import os
import stat
from pathlib import Path

import pytest

from wvq.checks import PATH
from wvq.errors import ConfigError, DataError
from wvq.files.ownership import private_folder
from wvq.files.user_folders import cache_folder, code_folders, expand_user, keep_torch_code_private, unwritable_cache


@pytest.fixture
def user(monkeypatch, tmp_path):
    """A user whose cache is a folder of the test, and who has not set WVQ_CACHE."""
    monkeypatch.delenv("WVQ_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def homeless(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("WVQ_CACHE", raising=False)


def test_a_path_is_that_of_the_users_home_or_refused_by_its_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_user("~/models") == Path("/home/me/models")
    assert expand_user(Path("models")) == Path("models")
    with pytest.raises(ConfigError, match=r"^save_directory must be a path or a name, got '': it is empty"):
        expand_user("", "save_directory")
    with pytest.raises(ConfigError, match=r"^out must be a path, got 's3://a': it is a URL"):
        expand_user("s3://a", "out", PATH)


def test_the_cache_is_the_users_or_the_one_that_the_environment_names(user, monkeypatch, tmp_path):
    assert cache_folder() == user / "wvq"
    monkeypatch.setenv("WVQ_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_the_home_in_the_name_of_a_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WVQ_CACHE", "~/own/")
    assert cache_folder() == tmp_path / "own"
    assert next(code_folders("native")) == tmp_path / "own" / "native"
    monkeypatch.setenv("WVQ_CACHE", "file:///own")
    with pytest.raises(ConfigError, match=r"^WVQ_CACHE must be a path"):
        cache_folder()


def test_an_error_about_a_cache_names_its_variable(user, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf" / "sets"))
    for name in ("HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    places = {
        "HF_HOME": tmp_path / "hf" / "token",
        "HF_DATASETS_CACHE": tmp_path / "hf" / "sets" / "a",
        "TORCH_HOME": user / "torch" / "hub",
    }
    for name, place in places.items():
        error = DataError("a.parquet cannot be read")
        error.__cause__ = RuntimeError("damaged")
        error.__cause__.__context__ = PermissionError(errno.EACCES, "Permission denied", str(place))
        line = unwritable_cache(error)
        assert line.startswith(f"{name}: ")
        assert line.endswith(" cannot be written (Permission denied); set it to a folder of yours")
    missed = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "hf" / "token"))
    assert unwritable_cache(missed).startswith("HF_HOME")
    (tmp_path / "hf").mkdir()
    assert unwritable_cache(missed) is None
    assert unwritable_cache(PermissionError(errno.EACCES, "Permission denied", "/data/a.png")) is None
    assert unwritable_cache(ValueError("x")) is None
    none = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert unwritable_cache(none).startswith("TMPDIR: ")


def test_compiled_code_goes_beside_the_cache_and_not_into_it(user, monkeypatch, tmp_path):
    assert list(code_folders("native")) == [user / "wvq-native"]
    monkeypatch.setenv("WVQ_CACHE", str(tmp_path / "own"))
    assert list(code_folders("native")) == [tmp_path / "own" / "native", user / "wvq-native"]


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_no_cache_but_the_one_in_the_environment(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="no home folder"):
        cache_folder()
    assert list(code_folders("native")) == []
    monkeypatch.setenv("WVQ_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert list(code_folders("native")) == [tmp_path / "native"]


def test_a_cache_that_is_missing_is_made_for_the_user_alone(user, monkeypatch, tmp_path):
    before = os.umask(0o002)
    try:
        assert private_folder(next(code_folders("native"))) == user / "wvq-native"
    finally:
        os.umask(before)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "missing" / "cache"))
    assert not cache_folder().parent.exists()


def test_torch_compile_keeps_its_code_in_a_private_folder(user, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    keep_torch_code_private()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_torch_code_private()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(user / "wvq-torch")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    user.joinpath("wvq-torch").chmod(0o777)
    keep_torch_code_private()
    other = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert stat.S_IMODE(os.stat(other).st_mode) == 0o700
    assert str(user) not in other


@pytest.mark.usefixtures("homeless")
def test_torch_compile_has_a_folder_without_a_home_too(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "to be put back")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_torch_code_private()
    assert stat.S_IMODE(os.stat(os.environ["TORCHINDUCTOR_CACHE_DIR"]).st_mode) == 0o700
