"""Tests of reading folders of pictures: the layouts, odd names, and every misfit as one clear line."""

import json

import datasets
import pytest
from PIL import Image

from wvq.data.folders import read_folder
from wvq.data.inventory import Inventory
from wvq.errors import DataError


def draw(path, colour="red", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def read(folder, layout=None, inventory=None):
    return read_folder(folder, layout, inventory or Inventory())


def write_metadata(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def test_class_folders_are_sorted_and_read_to_any_depth(tmp_path):
    draw(tmp_path / "dogs" / "a.png")
    draw(tmp_path / "cats" / "b.JPG")
    draw(tmp_path / "cats" / "old" / "c.png")
    (tmp_path / "cats" / "notes.txt").write_text("no picture")
    (tmp_path / ".empty").mkdir()
    draw(tmp_path / ".cache" / "thumbnail.png")
    draw(tmp_path / "dogs" / ".hidden.png")
    splits = read(tmp_path)
    assert list(splits) == ["train"]
    assert splits["train"].features["label"].names == ["cats", "dogs"]
    assert splits["train"]["label"] == [0, 0, 1]
    assert splits["train"][2]["image"].size == (8, 8)


def test_classes_may_be_called_train_and_test(tmp_path):
    for name in ("train", "test tube", "bus[1]"):
        draw(tmp_path / name / "test_1.png")
    splits = read(tmp_path)
    assert list(splits) == ["train"]
    assert splits["train"].features["label"].names == ["bus[1]", "test tube", "train"]


def test_split_folders(tmp_path):
    for split, name in (("train", "cats"), ("train", "dogs"), ("val", "dogs"), ("test", "cats")):
        draw(tmp_path / split / name / "1.png")
    splits = read(tmp_path)
    assert set(splits) == {"train", "validation", "test"}
    assert all(split.features["label"].names == ["cats", "dogs"] for split in splits.values())
    assert splits["validation"]["label"] == [1]


def test_plain_pictures(tmp_path):
    draw(tmp_path / "b.png", size=(4, 4))
    draw(tmp_path / "a.png", size=(6, 6))
    table = read(tmp_path)["train"]
    assert table.column_names == ["image"]
    assert [image.size for image in table["image"]] == [(6, 6), (4, 4)]


def test_metadata_gives_captions_and_labels(tmp_path):
    draw(tmp_path / "pictures" / "1.png")
    draw(tmp_path / "pictures" / "2.png")
    write_metadata(
        tmp_path,
        {"file_name": "pictures/2.png", "caption": "second", "label": "x"},
        {"file_name": "pictures/1.png", "caption": None},
    )
    table = read(tmp_path)["train"]
    assert table["caption"] == ["second", None]
    assert table["label"] == ["x", None]
    assert isinstance(table.features["image"], datasets.Image)


def test_links_are_followed_once(tmp_path):
    draw(tmp_path / "elsewhere" / "1.png")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cats").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert len(read(folder)["train"]) == 1


def test_no_pictures(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no pictures .*\.png"):
        read(tmp_path)


@pytest.mark.parametrize("content", [None, "notes.txt", "photo.heic", ".hidden.png"])
def test_a_class_folder_without_pictures(tmp_path, content):
    draw(tmp_path / "cats" / "1.png")
    (tmp_path / "dogs").mkdir()
    if content:
        (tmp_path / "dogs" / content).write_bytes(b"x")
    with pytest.raises(DataError, match=r"dogs lies among class folders but holds no pictures \(.*\.png.*\): fill it"):
        read(tmp_path)


def test_a_class_may_lack_pictures_in_one_split(tmp_path):
    for name in ("train/cats", "train/dogs", "val/cats"):
        draw(tmp_path / name / "1.png")
    (tmp_path / "val" / "dogs").mkdir()
    assert read(tmp_path)["validation"].features["label"].names == ["cats", "dogs"]
    (tmp_path / "val" / "birds").mkdir()
    with pytest.raises(DataError, match="birds lies among class folders but holds no pictures"):
        read(tmp_path)


def test_a_folder_without_pictures_beside_plain_pictures_is_no_class(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "notes").mkdir()
    assert read(tmp_path)["train"].column_names == ["image"]


def test_a_split_without_pictures(tmp_path):
    draw(tmp_path / "train" / "cats" / "1.png")
    (tmp_path / "validation").mkdir()
    with pytest.raises(DataError, match="validation holds no pictures"):
        read(tmp_path)


def test_two_folders_for_one_split(tmp_path):
    draw(tmp_path / "val" / "1.png")
    draw(tmp_path / "validation" / "1.png")
    with pytest.raises(DataError, match="two folders for one split: val, validation"):
        read(tmp_path)


def test_pictures_beside_class_folders(tmp_path):
    draw(tmp_path / "cats" / "1.png")
    draw(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies beside class folders"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json}", "line 1 is not JSON"),
        ('{"caption": "x"}', 'line 1 must be an object with a "file_name"'),
        ('["1.png"]', "line 1 must be an object"),
        ('\n{"file_name": "2.png"}', r"line 2 names .*2\.png, which does not exist"),
        ("", "lists no pictures"),
        ('{"file_name": "1.png", "text": "a"}\n{"file_name": "1.png", "text": [1]}', "mixes types in one field"),
    ],
)
def test_bad_metadata(tmp_path, text, message):
    draw(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
