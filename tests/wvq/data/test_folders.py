"""Tests of reading folders of pictures: the layouts, odd names, and every misfit as one clear line."""

import json
import os

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


@pytest.mark.parametrize(
    ("train", "held_out"), [("Train", "Val"), ("training", "validation"), ("TRAIN", "Dev"), ("train", "VALID")]
)
def test_split_folders_in_any_case(tmp_path, train, held_out):
    draw(tmp_path / train / "cats" / "1.png")
    draw(tmp_path / held_out / "cats" / "2.png")
    inventory = Inventory()
    splits = read(tmp_path, inventory=inventory)
    assert {name: len(split) for name, split in splits.items()} == {"train": 1, "validation": 1}
    assert splits["train"].features["label"].names == ["cats"]
    assert inventory.remarks == [f"train in {train}/, validation in {held_out}/"]


def test_numbers_are_classes_in_order_and_the_pictures_stay_where_they_were(tmp_path):
    for name in ("10", "0", "2", "1"):
        draw(tmp_path / name / "a.png")
    table = read(tmp_path)["train"]
    assert table.features["label"].names == ["0", "1", "2", "10"]
    assert table["label"] == [0, 1, 3, 2]
    paths = [row["image"]["path"] for row in table.cast_column("image", datasets.Image(decode=False))]
    assert paths == sorted(paths)


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


@pytest.mark.parametrize("names", [["train", "bus", "plane"], ["test", "trains"]])
def test_one_name_of_a_split_among_others_is_a_class(tmp_path, names):
    for name in names:
        draw(tmp_path / name / "1.png")
    inventory = Inventory()
    assert read(tmp_path, inventory=inventory)["train"].features["label"].names == sorted(names)
    assert inventory.remarks == [f"{names[0]} is a class and no split"]


class TestDoubt:
    """Folders that can be understood in two ways: refused, with what each choice reads."""

    def test_splits_beside_another_folder(self, tmp_path):
        for name in ("train/a", "val/a", "extra/b"):
            draw(tmp_path / name / "1.png")
        with pytest.raises(DataError, match=r"train/ and val/ are named like splits, extra not: .*splits .*classes"):
            read(tmp_path)
        inventory = Inventory()
        splits = read(tmp_path, "splits", inventory)
        assert {name: len(split) for name, split in splits.items()} == {"train": 1, "validation": 1}
        assert inventory.passed_over == {"pictures outside of the splits": ["1.png"]}
        assert read(tmp_path, "classes")["train"].features["label"].names == ["extra", "train", "val"]
        plain = read(tmp_path, "plain")["train"]
        assert (len(plain), plain.column_names) == (3, ["image"])

    def test_one_split_of_classes_beside_another_folder(self, tmp_path):
        for name in ("train/a", "train/b", "extra/a"):
            draw(tmp_path / name / "1.png")
        with pytest.raises(DataError, match=r"train/ is named like splits, extra not: .*splits .*classes"):
            read(tmp_path)
        assert list(read(tmp_path, "splits")) == ["train"]
        assert read(tmp_path, "classes")["train"].features["label"].names == ["extra", "train"]

    def test_pictures_beside_splits(self, tmp_path):
        for name in ("train/1.png", "val/1.png", "stray.png"):
            draw(tmp_path / name)
        with pytest.raises(DataError, match=r"stray\.png beside train/ and val/: .*layout splits .*layout plain"):
            read(tmp_path)
        inventory = Inventory()
        assert set(read(tmp_path, "splits", inventory)) == {"train", "validation"}
        assert inventory.passed_over == {"pictures outside of the splits": ["stray.png"]}
        assert len(read(tmp_path, "plain")["train"]) == 3

    def test_pictures_beside_classes(self, tmp_path):
        for name in ("cats/1.png", "dogs/1.png", "stray.png"):
            draw(tmp_path / name)
        with pytest.raises(
            DataError, match=r"stray\.png lies beside class folders .*layout classes the 1 .*layout plain"
        ):
            read(tmp_path)
        inventory = Inventory()
        assert read(tmp_path, "classes", inventory)["train"]["label"] == [0, 1]
        assert inventory.passed_over == {"pictures beside the class folders": ["stray.png"]}
        assert len(read(tmp_path, "plain")["train"]) == 3

    def test_pictures_beside_classes_within_a_split(self, tmp_path):
        for name in ("train/cats/1.png", "train/stray.png", "val/cats/1.png"):
            draw(tmp_path / name)
        with pytest.raises(DataError, match=r"stray\.png lies beside class folders \(cats\).*elsewhere$"):
            read(tmp_path)

    def test_a_folder_without_pictures_beside_splits_is_none(self, tmp_path):
        draw(tmp_path / "train" / "1.png")
        draw(tmp_path / "val" / "1.png")
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "train.json").write_text("{}")
        inventory = Inventory()
        assert set(read(tmp_path, inventory=inventory)) == {"train", "validation"}
        assert inventory.passed_over == {".json": ["train.json"]}

    def test_splits_that_are_not_there(self, tmp_path):
        draw(tmp_path / "cats" / "1.png")
        with pytest.raises(DataError, match="has no folder named after a split"):
            read(tmp_path, "splits")


class TestWrappers:
    """A folder that is alone and holds only folders stands for what is in it."""

    def test_classes_in_one_folder(self, tmp_path):
        for name in ("images/cats", "images/dogs"):
            draw(tmp_path / name / "1.png")
        (tmp_path / "README.md").write_text("x")
        inventory = Inventory()
        assert read(tmp_path, inventory=inventory)["train"].features["label"].names == ["cats", "dogs"]
        assert inventory.remarks == ["read within images/, which is alone and holds folders"]
        assert inventory.passed_over == {".md": ["README.md"]}

    def test_splits_two_folders_down(self, tmp_path):
        for name in ("data/images/train/cats", "data/images/val/cats"):
            draw(tmp_path / name / "1.png")
        assert set(read(tmp_path)) == {"train", "validation"}

    def test_a_class_alone_is_no_wrapper(self, tmp_path):
        draw(tmp_path / "cats" / "1.png")
        assert read(tmp_path)["train"].features["label"].names == ["cats"]

    def test_the_first_folder_can_be_chosen(self, tmp_path):
        for name in ("images/cats", "images/dogs"):
            draw(tmp_path / name / "1.png")
        assert read(tmp_path, "classes")["train"].features["label"].names == ["images"]

    def test_folders_that_link_to_each_other_end(self, tmp_path):
        for name, other in (("a", "b"), ("b", "a")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "next").symlink_to(tmp_path / other)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "a").symlink_to(tmp_path / "a")
        with pytest.raises(DataError, match="holds no pictures"):
            read(tmp_path / "data")


def test_parts_of_img2dataset_are_no_classes(tmp_path):
    for part in ("00000", "00001"):
        draw(tmp_path / part / f"{part}0000.jpg")
        (tmp_path / part / f"{part}0000.txt").write_text(part)
        (tmp_path / f"{part}_stats.json").write_text("{}")
    inventory = Inventory()
    table = read(tmp_path, inventory=inventory)["train"]
    assert (table.column_names, table["caption"]) == (["image", "caption"], ["00000", "00001"])
    assert "numbered folders are parts and no classes" in inventory.remarks
    assert read(tmp_path, "classes")["train"].features["label"].names == ["00000", "00001"]


def test_parts_of_img2dataset_beside_a_split_of_classes(tmp_path):
    draw(tmp_path / "train" / "00000" / "1.jpg")
    (tmp_path / "train" / "00000_stats.json").write_text("{}")
    draw(tmp_path / "val" / "cats" / "1.png")
    splits = read(tmp_path)
    assert splits["train"].column_names == ["image"]
    assert splits["validation"].features["label"].names == ["cats"]


@pytest.mark.parametrize("name", ["caf\udce9.png", "caf\udce9/1.png"])
def test_names_that_are_not_utf_8(tmp_path, name):
    draw(tmp_path / "cats" / "1.png")
    draw(tmp_path / "cats" / name)
    with pytest.raises(DataError, match=r"caf\\xe9.*: this name is not UTF-8 text, .*rename it") as caught:
        read(tmp_path)
    str(caught.value).encode()


def test_a_class_name_that_is_not_utf_8(tmp_path):
    draw(tmp_path / "caf\udce9" / "1.png")
    draw(tmp_path / "cats" / "1.png")
    with pytest.raises(DataError, match=r"^caf\\xe9: this name is not UTF-8 text"):
        read(tmp_path)


def test_other_files_may_have_such_names(tmp_path):
    draw(tmp_path / "1.png")
    (tmp_path / "caf\udce9.pdf").write_text("")
    inventory = Inventory()
    assert len(read(tmp_path, inventory=inventory)["train"]) == 1
    assert inventory.passed_over == {".pdf": ["caf\udce9.pdf"]}


def test_pipes_and_sockets_do_not_hang(tmp_path):
    draw(tmp_path / "1.png")
    for name in ("pipe.png", "1.txt", "metadata.csv", "captions.jsonl", "pipe"):
        os.mkfifo(tmp_path / name)
    inventory = Inventory()
    assert read(tmp_path, inventory=inventory)["train"].column_names == ["image"]
    assert len(inventory.passed_over["no plain file"]) == 5


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
