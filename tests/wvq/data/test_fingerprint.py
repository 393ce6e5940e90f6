"""Ids of pictures: they stay when a folder moves, and differ where pictures do."""

import shutil

import datasets
import numpy as np
import pytest

from tests.drawings import write_pictures
from wvq.data.dataset import load_images
from wvq.data.fingerprint import fingerprint_of, sketch_table
from wvq.data.openmoji import read_emoji_table
from wvq.data.tables import PictureTable
from wvq.files.fingerprint import number_new, same_pictures
from wvq.settings.data import DataConfig


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "pictures")
    return tmp_path / "pictures"


def fingerprint(path, **changes):
    data = DataConfig(path=str(path), validation_fraction=0.2, **changes)
    return fingerprint_of(load_images(data), data.path)


def same(one, other):
    return (one.train.digest, one.validation.digest) == (other.train.digest, other.validation.digest)


def test_a_folder_that_moves_or_is_named_otherwise_is_the_same(folder, tmp_path, monkeypatch):
    before = fingerprint(folder)
    assert (before.train.count, before.validation.count) == (48, 12)
    folder.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("moved", "./moved/", "~/moved", tmp_path / "link", tmp_path / "moved" / ".." / "moved"):
        assert same(fingerprint(path), before)
    monkeypatch.chdir("moved")
    assert same(fingerprint("."), before)


def test_size_crop_and_classes_do_not_count(folder):
    before = fingerprint(folder)
    assert same(fingerprint(folder, image_size=64, crop="ten"), before)
    circles = fingerprint(folder, classes=["circle"])
    assert number_new(before.train, circles.train) == number_new(before.validation, circles.validation) == 0
    assert circles.train.count == 16


def test_another_seed_holds_out_others_of_the_same_pictures(folder):
    before, now = fingerprint(folder), fingerprint(folder, seed=1)
    assert number_new(before.train, now.train) == number_new(now.train, before.train) > 0
    assert same_pictures(before, now)


def test_a_picture_of_another_size_in_bytes_is_another(folder):
    before = fingerprint(folder)
    files = sorted(folder.rglob("*.png"))
    for file in files:
        file.write_bytes(file.read_bytes() + b"\0")
    now = fingerprint(folder)
    assert number_new(before.train, now.train) == 48


def test_pictures_of_the_metadata_are_those_of_the_class_folders(caption_folder, picture_folder):
    listed, found = (fingerprint(path) for path in (caption_folder, picture_folder))
    joined = [one.train.joined(one.validation) for one in (listed, found)]
    assert joined[0].digest == joined[1].digest


def test_a_picture_outside_of_the_folder_counts_by_its_own_folder_and_name(tmp_path, folder):
    paths = sorted(map(str, folder.rglob("*.png")))
    pictures = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
    before = sketch_table(PictureTable(pictures), "owner/name")
    shutil.copytree(folder, tmp_path / "cache" / "of" / "another" / "machine")
    moved = [path.replace(str(folder), str(tmp_path / "cache" / "of" / "another" / "machine")) for path in paths]
    pictures = datasets.Dataset.from_dict({"image": moved}).cast_column("image", datasets.Image(decode=False))
    assert sketch_table(PictureTable(pictures), "owner/name").digest == before.digest


def test_a_file_that_is_gone_counts_by_its_name(tmp_path, folder):
    lost = str(folder / "circle" / "lost.png")
    pictures = datasets.Dataset.from_dict({"image": [lost]}).cast_column("image", datasets.Image(decode=False))
    assert sketch_table(PictureTable(pictures), str(folder)).count == 1


# ---- pictures within tables


def stored(contents, names):
    rows = [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)]
    features = datasets.Features(image=datasets.Image(decode=False))
    return PictureTable(datasets.Dataset.from_dict({"image": rows}, features=features))


def contents_of(count):
    rng = np.random.default_rng(0)
    return [b"head" * 40 + rng.bytes(100) + bytes(index % 3) for index in range(count)]


NAMES = {
    "names": [f"{index}.png" for index in range(40)],
    "no names": [None] * 40,
    "names of each class": [f"{index % 10}.png" for index in range(40)],
    "one name": ["image.png"] * 40,
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_pictures_of_a_table_differ_by_their_content_whatever_their_names(names):
    contents = contents_of(40)
    table = stored(contents, names)
    before = sketch_table(table, "a.parquet")
    assert len(np.unique(before.ids)) == 40
    order = np.random.default_rng(1).permutation(40)
    assert (
        sketch_table(table.select(order), "b.parquet").digest == before.digest
    )  # its rows are a choice of the table's
    copied = stored([contents[index] for index in order], [names[index] for index in order])
    assert sketch_table(copied, "b.parquet").digest == before.digest
    assert number_new(before, sketch_table(table.select(range(5, 30)), "a.parquet")) == 0
    contents[3] = contents[3][:-1] + b"x"
    assert number_new(before, sketch_table(stored(contents, names), "a.parquet")) == 1


def test_a_parquet_file_gives_the_ids_of_its_rows_in_several_pieces(tmp_path):
    table = stored(contents_of(40), NAMES["names"])
    table.pictures.to_parquet(tmp_path / "a.parquet", batch_size=7)
    read = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=tmp_path, split="train")
    halves = datasets.concatenate_datasets([read.select(range(13)), read.select(range(13, 40))])
    before = sketch_table(table, "a.parquet")
    for pictures in (read, halves):
        pictures = pictures.cast_column("image", datasets.Image(decode=False))
        assert sketch_table(PictureTable(pictures), "a.parquet").digest == before.digest


def test_the_built_in_pictures_count_by_their_names_alone():
    names = [f"{emoji.name}.png" for emoji in read_emoji_table()]
    drawn = [stored([content] * len(names), names) for content in (b"small", b"large one")]
    small, large = (sketch_table(table, "openmoji") for table in drawn)
    assert small.digest == large.digest
    assert len(np.unique(small.ids)) == len(names)
