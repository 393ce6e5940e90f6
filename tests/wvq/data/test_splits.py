"""The choice of held-out pictures, and the warning where a second use of a data set holds out others than the first."""

from dataclasses import asdict

import datasets
import numpy as np
import pytest
import yaml

from wvq.data.splits import check_held_out, check_pictures, hold_out
from wvq.data.tables import PictureTable
from wvq.errors import ConfigError, DataError
from wvq.files.fingerprint import DataFingerprint, PictureSketch
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


# ---- two uses of one data set, by their recipes


@pytest.fixture
def run(tmp_path):
    folder, pictures = tmp_path / "run", tmp_path / "pictures"
    folder.mkdir()
    pictures.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": {"path": str(pictures), "seed": 1, "classes": ["a"]}}))
    return folder, pictures


def data_of(train, validation):
    return DataFingerprint(PictureSketch.of(train), PictureSketch.of(validation))


def by_recipe(folder, data):
    """What is said where the run has no fingerprint."""
    return check_held_out(None, data_of("a", "b"), folder, data)


def test_the_same_split_is_no_warning(run):
    folder, pictures = run
    assert by_recipe(folder, DataConfig(path=str(pictures), seed=1, classes=["a"], image_size=64)) is None


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
    warning = by_recipe(folder, DataConfig(path=str(pictures), **changes))
    assert words in warning
    assert "; set --data." in warning


def test_pictures_of_a_stream_are_compared_by_the_recipe(run):
    folder, pictures = run
    data = DataConfig(path=str(pictures), seed=1, classes=["a"], stream=True)
    (warning,) = check_pictures(data_of("a", "b"), None, folder, data)
    assert "data.stream False and here it is True: held-out pictures may have been trained on" in warning
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": asdict(data)}))
    assert check_pictures(None, None, folder, data) == []


def test_other_data_and_folders_without_a_recipe_are_no_warning(run, tmp_path):
    folder, _ = run
    assert by_recipe(folder, DataConfig(path="openmoji")) is None
    assert by_recipe(tmp_path, DataConfig()) is None


def test_the_same_folder_by_another_path_is_the_same_data(run, monkeypatch):
    folder, pictures = run
    monkeypatch.chdir(pictures.parent)
    assert "data.seed" in by_recipe(folder, DataConfig(path="pictures", classes=["a"]))
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert "data.seed" in by_recipe(folder, DataConfig(path="~/pictures", classes=["a"]))


# ---- two uses of one data set, by their fingerprints

BEFORE = data_of("abcdefgh", "xyz")


def test_the_same_pictures_held_out_alike_are_no_warning(run):
    folder, pictures = run
    assert check_pictures(BEFORE, data_of("hgfedcba", "zyx"), folder, DataConfig(path=str(pictures), seed=5)) == []


def test_new_and_missing_training_pictures_are_counted():
    warning = "tok was trained on other pictures: 2 of 7 training pictures are new, 3 are gone"
    assert check_pictures(BEFORE, data_of("abcde12", "xyz"), "tok", DataConfig()) == [warning]
    assert check_pictures(BEFORE, data_of("abcde12", "w"), "tok", None, resumed=True) == [warning]


def test_held_out_pictures_that_were_trained_on_are_refused_with_counts_and_remedy(run):
    folder, _ = run
    mixed = "was trained on 2 of these 3 held-out pictures"
    files = f"^tok {mixed} \\(1 of 10 pictures are new, 2 are gone\\): restore the files, or accept it with "
    with pytest.raises(ConfigError, match=f"{files}--data.ignore_mixed_split true$"):
        check_pictures(BEFORE, data_of("abcdef1", "ghx"), "tok", DataConfig())
    otherwise = f"{mixed} \\(the same pictures, held out otherwise\\): "
    with pytest.raises(
        ConfigError, match=f"^tok {otherwise}set --data.seed and what else decides the hold-out as there, or"
    ):
        check_pictures(BEFORE, data_of("abcdefyz", "ghx"), "tok", DataConfig())
    with pytest.raises(ConfigError, match=f"{otherwise}set --data.seed 1, or accept it with"):
        check_pictures(BEFORE, data_of("abcdefyz", "ghx"), folder, DataConfig(path="moved", classes=["a"]))
    with pytest.raises(ConfigError, match=f"{otherwise}restore the codes that it was started with, or start another"):
        check_pictures(BEFORE, data_of("abcdefyz", "ghx"), "run", None)


def test_a_mixed_split_that_is_accepted_is_a_warning():
    lines = check_pictures(BEFORE, data_of("abcdefyz", "ghx"), "tok", DataConfig(ignore_mixed_split=True))
    assert lines == [
        "tok was trained on other pictures: 2 of 8 training pictures are new, 2 are gone, the same pictures held out "
        "otherwise",
        "tok was trained on 2 of these 3 held-out pictures",
    ]


def test_a_resumed_run_must_not_train_on_what_it_held_out():
    now = data_of("abcdefghx", "yz")
    assert len(check_pictures(BEFORE, now, "run", DataConfig())) == 1
    with pytest.raises(ConfigError, match=r"^run held out 1 of these 9 training pictures"):
        check_pictures(BEFORE, now, "run", DataConfig(), resumed=True)
