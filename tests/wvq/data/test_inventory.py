"""Tests of the line that says what was read, held out and passed over."""

import datasets
import pytest

from wvq.data.dataset import load_images
from wvq.data.inventory import Inventory, first_names, shown
from wvq.data.tables import PictureTable
from wvq.settings.data import DataConfig


def table(count, texts=None):
    return PictureTable(datasets.Dataset.from_dict({"image": list(range(count))}), texts=texts)


def test_the_line():
    inventory = Inventory()
    inventory.remark("train in Train/")
    inventory.remark("train in Train/")
    for name in ("a.txt", "b.TXT", "c.txt", "d.txt", "LICENSE"):
        inventory.pass_over(name)
    inventory.pass_over("pipe.png", "no plain file")
    inventory.count(
        table(1200, [("x",)] * 1200), table(137, [("y",)] * 136 + [(" ",)]), ("a", "b"), "10% of each class"
    )
    assert str(inventory) == (
        "pictures: 1,200 training, 137 held out (10% of each class); 2 classes (a, b); captions for 1,336 of 1,337; "
        "train in Train/; passed over: 6 files (4 .txt: a.txt, b.TXT, c.txt and 1 more, 1 no ending: LICENSE, "
        "1 no plain file: pipe.png)"
    )


def test_one_file_of_one_class():
    inventory = Inventory()
    inventory.pass_over("notes.txt")
    inventory.count(table(2), table(1), ("a",), "the split test")
    assert str(inventory) == (
        "pictures: 2 training, 1 held out (the split test); 1 class (a); no captions; "
        "passed over: 1 file (.txt: notes.txt)"
    )


def test_all_captions_and_many_classes():
    inventory = Inventory()
    inventory.count(
        table(2, [("a", "b"), ("c",)]), table(1, [("d",)]), tuple(map(str, range(1000))), "10% of each class"
    )
    assert "; 1,000 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...); captions for all" in str(inventory)


def test_names_command_no_terminal_and_need_no_utf_8():
    inventory = Inventory()
    inventory.pass_over("red\x1b[31m\n.pdf")
    assert str(inventory).endswith(r"(.pdf: red\x1b[31m .pdf)")
    assert shown("caf\udce9.png") == r"caf\xe9.png"
    assert first_names(["a", "b"]) == "a, b"


def test_it_is_printed_once_by_the_main_process(capsys, monkeypatch):
    Inventory(num_images={"training": 1}).show()
    assert capsys.readouterr().out.startswith("pictures: 1 training")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    Inventory().show()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "held_out_as"), [({}, "10% of each class"), ({"validation_fraction": 0.25}, "25% of each class")]
)
def test_loaded_pictures_carry_it(picture_folder, settings, held_out_as):
    images = load_images(DataConfig(path=str(picture_folder), image_size=8, **settings))
    inventory = images.inventory
    assert inventory.num_images == {"training": len(images.train), "held out": len(images.validation)}
    assert inventory.class_names == images.class_names
    assert inventory.held_out_as == held_out_as
    assert inventory.num_captioned is None
