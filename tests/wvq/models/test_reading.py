"""Folders of models: local ones, sub-folders, and Hub ids."""

import pytest

from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.models.reading import resolve_folder


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert resolve_folder(tmp_path, "tokenizer") == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert resolve_folder("runs/a", "tokenizer").samefile(tmp_path / "runs" / "a")


@pytest.mark.parametrize("path", ["/none/here", "./none", "none", "a/b/c", "runs/typo", "~/none-such"])
def test_a_missing_folder_is_not_asked_of_the_hub(tmp_path, monkeypatch, path):
    def fail(*args, **kwargs):
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="no such tokenizer folder"):
        resolve_folder(path, "tokenizer")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CheckpointError, match=r"a.txt is a file, not a tokenizer folder"):
        resolve_folder(tmp_path / "a.txt", "tokenizer")


def test_a_hub_id_is_fetched_without_pickles(tmp_path, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("owner/name", "tokenizer", revision="v1") == tmp_path
    assert asked["name"] == "owner/name"
    assert asked["revision"] == "v1"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".pkl", "*")) for pattern in asked["allow_patterns"])


def test_a_hub_id_that_cannot_be_fetched_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DownloadError, match=r'"owner/name" is no local folder .*check the name and the network'
    ) as error:
        resolve_folder("owner/name", "tokenizer")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [None, "", 3])
def test_no_path_at_all_is_one_line(path):
    with pytest.raises(ConfigError, match=rf"needs the folder or Hub id of a tokenizer, got {path!r}"):
        resolve_folder(path, "tokenizer")


def test_a_sub_folder_is_returned_and_fetched_alone(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert resolve_folder(tmp_path, "tokenizer", subfolder="a/b") == tmp_path / "a" / "b"
    with pytest.raises(CheckpointError, match="holds no folder c; check subfolder"):
        resolve_folder(tmp_path, "tokenizer", subfolder="c")
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **o: asked.update(o) or str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("owner/name", "tokenizer", ("config.json",), subfolder="a") == tmp_path / "a"
    assert asked["allow_patterns"] == ["a/config.json"]
