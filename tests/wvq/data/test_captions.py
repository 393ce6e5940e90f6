"""Tests of captions beside pictures: which files give them, who disagrees, and what only looks like captions."""

import json
import warnings

import pytest
from PIL import Image

from wvq.data.folders import read_folder
from wvq.data.inventory import Inventory
from wvq.errors import DataError


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        draw(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def classes(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        draw(tmp_path / name)
    return tmp_path


def read(folder, layout=None):
    """The training pictures and the inventory; a warning is an error."""
    inventory = Inventory()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_folder(folder, layout, inventory)["train"], inventory


def write_jsonl(file, **captions):
    rows = [{"file_name": f"{name}.png", "caption": text} for name, text in captions.items()]
    file.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_a_text_beside_each_picture_is_its_caption(folder, ending):
    (folder / f"0{ending}").write_text(" red\u2028and\nblue \n")
    (folder / f"1{ending}").write_bytes("зелёный".encode("utf-16"))
    table, inventory = read(folder)
    assert table["caption"] == ["red\u2028and\nblue", "зелёный", None]
    assert inventory.remarks == [f"NAME{ending} read"]
    assert not inventory.passed_over


def test_texts_beside_pictures_of_classes(classes):
    (classes / "a" / "1.txt").write_text("red")
    (classes / "notes.txt").write_text("hello")
    table, inventory = read(classes)
    assert table["caption"] == [None, "red", None]
    assert table.features["label"].names == ["a", "b"]
    assert inventory.passed_over == {".txt": ["notes.txt"]}


def test_a_text_in_another_encoding(folder):
    (folder / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"1\.txt line 1 is not UTF-8 text \(byte e9\)"):
        read(folder)


def test_boxes_of_objects_are_no_captions(folder):
    for number in range(3):
        (folder / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n12 .5 1 2e-1 -0.3\n")
    with pytest.warns(UserWarning, match=r"^0\.txt, 1\.txt, 2\.txt look like captions or labels and are not used"):
        table = read_folder(folder, None, Inventory())["train"]
    assert table.column_names == ["image"]


def test_numbers_may_be_captions(folder):
    (folder / "0.txt").write_text("7")
    assert read(folder)[0]["caption"] == ["7", None, None]


def test_metadata_within_class_folders_adds_captions(classes):
    write_jsonl(classes / "a" / "metadata.jsonl", **{"1": "red"})
    (classes / "b" / "Captions.csv").write_text("file_name,caption\n0.png,blue\n")
    table, inventory = read(classes)
    assert table["caption"] == [None, "red", "blue"]
    assert table["label"] == [0, 0, 1]
    assert inventory.remarks == ["metadata.jsonl read", "Captions.csv read"]


def test_a_list_at_the_top_leaves_out_what_it_does_not_name(folder):
    write_jsonl(folder / "metadata.jsonl", **{"1": "red"})
    inventory = Inventory()
    with pytest.warns(
        UserWarning, match=r"^2 of 3 pictures are not named in .*jsonl and are left out, such as 0\.png, 2"
    ):
        table = read_folder(folder, None, inventory)["train"]
    assert table["caption"] == ["red"]
    assert inventory.passed_over == {"pictures that the metadata does not name": ["0.png", "2.png"]}


def test_a_chosen_layout_keeps_classes_beside_a_list_at_the_top(classes):
    write_jsonl(classes / "metadata.jsonl", **{"a/0": "one", "a/1": "two", "b/0": "three"})
    table, inventory = read(classes)
    assert table.column_names == ["image", "caption"]
    assert inventory.remarks[-1] == "a, b are no classes beside metadata.jsonl (data.layout)"
    table, _ = read(classes, "classes")
    assert (table["caption"], table["label"]) == (["one", "two", "three"], [0, 0, 1])


def test_paths_in_a_list_are_compared_as_paths(folder):
    write_jsonl(folder / "metadata.jsonl", **{"./0": "a", "sub/../1": "b", "2": "c"})
    (folder / "sub").mkdir()
    (folder / "1.txt").write_text("b")
    table, _ = read(folder)
    assert table["caption"] == ["a", "b", "c"]


def test_several_files_that_agree_are_joined(folder):
    (folder / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{i}.png", "label": "x"}) for i in range(3))
    )
    (folder / "captions.csv").write_text("file_name,caption,label\n0.png,red,x\n")
    (folder / "0.txt").write_text("red\n")
    (folder / "1.txt").write_text("blue")
    table, inventory = read(folder)
    assert table["caption"] == ["red", "blue", None]
    assert table["label"] == ["x"] * 3
    assert not inventory.passed_over


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "0.txt",
            "green",
            r"metadata\.jsonl line 1 and .*0\.txt disagree about .*0\.png: its caption is 'red' or 'green'",
        ),
        ("captions.csv", "file_name,text\n0.png,green\n", r"captions\.csv line 2 disagree about .*'red' or 'green'"),
        (
            "metadata.csv",
            "file_name,label\n0.png,b\n",
            r"metadata\.csv line 2 disagree about .*its label is 'a' or 'b'",
        ),
    ],
)
def test_several_files_that_disagree_are_named(folder, name, text, message):
    rows = [{"file_name": "0.png", "caption": "red", "label": "a"}, {"file_name": "1.png"}, {"file_name": "2.png"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "id,breed\n0,cat\n"),
        ("Annotations.json", "{}"),
        ("prompts.txt", "red\nblue\n"),
        ("train_captions.txt", "red\n"),
        ("all-Labels.csv", "id,breed\n0,cat\n"),
        ("list.txt", "a/0.png 1\n2.png 3\n"),
        ("0.json", '{"caption": "red"}'),
    ],
)
def test_what_looks_like_captions_and_is_not_used_is_named(folder, name, text):
    (folder / name).write_text(text)
    inventory = Inventory()
    with pytest.warns(UserWarning, match=rf"^{name} looks like captions or labels and is not used; captions are read"):
        table = read_folder(folder, None, inventory)["train"]
    assert table.column_names == ["image"]
    assert [name] in inventory.passed_over.values()


def test_a_metadata_file_of_another_form_is_named(folder):
    (folder / "captions.json").write_text('{"annotations": []}')
    with pytest.warns(UserWarning, match=r"captions\.json is neither a list of .*; the file is not used") as caught:
        table = read_folder(folder, None, Inventory())["train"]
    assert (table.column_names, len(caught)) == (["image"], 1)


@pytest.mark.parametrize(
    ("name", "text"), [("notes.txt", "hello"), ("unlabelled.txt", "no"), ("config.json", "{}"), ("0.md", "0.png")]
)
def test_other_texts_are_only_counted(folder, name, text):
    (folder / name).write_text(text)
    assert [name] in read(folder)[1].passed_over.values()


def test_details_beside_pictures_with_captions_are_only_counted(folder):
    for number in range(3):
        (folder / f"{number}.txt").write_text("red")
        (folder / f"{number}.json").write_text('{"caption": "red", "url": "x"}')
    assert read(folder)[1].passed_over == {".json": ["0.json", "1.json", "2.json"]}
