"""A warning where a second use of a data set holds out other pictures than the run before."""

import pytest
import yaml

from wvq.data.splits import other_split
from wvq.settings.data import DataConfig


@pytest.fixture
def run(tmp_path):
    folder, pictures = tmp_path / "run", tmp_path / "pictures"
    folder.mkdir()
    pictures.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": {"path": str(pictures), "seed": 1, "classes": ["a"]}}))
    return folder, pictures


def test_the_same_split_is_no_warning(run):
    folder, pictures = run
    assert other_split(folder, DataConfig(path=str(pictures), seed=1, classes=["a"], image_size=64)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"classes": ["a"]}, "data.seed 1 and here it is 0"), ({"seed": 1}, "data.classes ['a'] and here it is None")],
)
def test_another_split_is_named_with_the_remedy(run, changes, words):
    folder, pictures = run
    warning = other_split(folder, DataConfig(path=str(pictures), **changes))
    assert words in warning
    assert "; set --data." in warning


def test_other_data_and_folders_without_a_recipe_are_no_warning(run, tmp_path):
    folder, _ = run
    assert other_split(folder, DataConfig(path="openmoji")) is None
    assert other_split(tmp_path, DataConfig()) is None


def test_the_same_folder_by_another_path_is_the_same_data(run, monkeypatch):
    folder, pictures = run
    monkeypatch.chdir(pictures.parent)
    assert "data.seed" in other_split(folder, DataConfig(path="pictures", classes=["a"]))
