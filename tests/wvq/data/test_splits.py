"""The choice of held-out pictures, and the warning where a second use of a data set holds out others than the first."""

import datasets
import numpy as np
import pytest
import yaml

from wvq.data.splits import hold_out, other_split
from wvq.data.tables import PictureTable
from wvq.errors import DataError
from wvq.settings.data import DataConfig


def label_table(labels, groups=None):
    return PictureTable(datasets.Dataset.from_dict({"image": list(range(len(labels)))}), labels=labels, groups=groups)


def test_the_share_of_every_class():
    labels = [0] * 100 + [1] * 1000 + [2] * 15 + [-1] * 50
    held_out = hold_out(label_table(labels), ("a", "b", "c"), 0.1, seed=0)
    counts = [int(held_out[np.asarray(labels) == label].sum()) for label in (0, 1, 2, -1)]
    assert counts[:2] == [10, 100]
    assert counts[2] in (1, 2)
    assert counts[3] == 5


def test_many_tiny_classes_get_their_share_in_all():
    labels = list(np.repeat(np.arange(500), 4))
    held_out = hold_out(label_table(labels), tuple(map(str, range(500))), 0.1, seed=0)
    assert 150 < held_out.sum() < 250


def test_deterministic_by_seed_and_independent_of_other_classes():
    both = label_table([0] * 50 + [1] * 50)
    first = hold_out(both, ("a", "b"), 0.2, seed=1)
    assert (first == hold_out(both, ("a", "b"), 0.2, seed=1)).all()
    assert (first != hold_out(both, ("a", "b"), 0.2, seed=2)).any()
    assert (first[50:] == hold_out(label_table([0] * 50), ("b",), 0.2, seed=1)).all()


def test_groups_stay_whole_and_large_ones_train():
    groups = [f"pair {i // 2}" for i in range(80)] + ["crowd"] * 20
    held_out = hold_out(label_table([0] * 100, groups), ("a",), 0.15, seed=0)
    assert not held_out[80:].any()
    assert (held_out[0:80:2] == held_out[1:80:2]).all()
    assert 14 <= held_out.sum() <= 16


def test_a_class_keeps_a_picture_and_one_is_held_out():
    for seed in range(20):
        held_out = hold_out(label_table([0, 0, 1]), ("a", "b"), 0.99, seed)
        assert held_out[:2].sum() == 1
        assert not held_out[2]
        assert hold_out(label_table([0] * 5), ("a",), 0.01, seed).sum() == 1


def test_nothing_to_hold_out():
    with pytest.raises(DataError, match="nothing can be held out of 2 pictures"):
        hold_out(label_table([0, 1]), ("a", "b"), 0.5, seed=0)


# ---- two uses of one data set


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
    [
        ({"classes": ["a"]}, "data.seed 1 and here it is 0"),
        ({"seed": 1}, "data.classes ['a'] and here it is None"),
        ({"seed": 1, "classes": ["a"], "stream": True}, "data.stream False and here it is True"),
    ],
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
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert "data.seed" in other_split(folder, DataConfig(path="~/pictures", classes=["a"]))
