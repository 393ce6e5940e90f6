"""Tests of parquet files: which of a folder are read, which split each is, paths as they are, and differing files."""

import io

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from wvq.data.dataset import load_images
from wvq.data.parquet import holds_parquet
from wvq.errors import DataError
from wvq.settings.data import DataConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def write(file, count=4, **columns):
    """As img2dataset writes them: encoded pictures in the column ``jpg``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"jpg": [png()] * count, "caption": [file.stem] * count, **columns})
    with file.open("wb") as opened:  # a path would be taken for a URI
        pyarrow.parquet.write_table(table, opened)
    return file


def load(path, **settings):
    return load_images(DataConfig(path=str(path), image_size=8, validation_fraction=0.25, **settings))


def captions(images):
    return sorted({*images.train.captions, *images.validation.captions})


def test_statistics_beside_parts(tmp_path):
    write(tmp_path / "00000.parquet")
    write(tmp_path / "00001.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    images = load(tmp_path)
    assert captions(images) == ["00000", "00001"]
    assert images.inventory.remarks == ["2 parquet files"]
    assert images.inventory.passed_over == {".json": ["00000_stats.json"]}


def test_notes_of_other_programs_and_a_preview(tmp_path):
    write(tmp_path / "part-0.parquet")
    write(tmp_path / "_temporary.parquet")
    write(tmp_path / "_delta_log" / "0.parquet")
    for name in ("_SUCCESS", "_metadata", "LICENSE"):
        (tmp_path / name).write_text("x")
    (tmp_path / "preview.png").write_bytes(png())
    images = load(tmp_path)
    assert captions(images) == ["part-0"]
    assert images.inventory.passed_over == {
        ".parquet": ["_temporary.parquet", "0.parquet"],
        ".png": ["preview.png"],
        "no ending": ["LICENSE", "_SUCCESS", "_metadata"],
    }


def test_a_name_with_train_in_it_is_no_split(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "my_train_set.parquet")
    assert captions(load(tmp_path)) == ["a", "my_train_set"]


def test_splits_by_name_and_by_folder(tmp_path):
    write(tmp_path / "named" / "train-00000-of-00002.parquet")
    write(tmp_path / "named" / "train-00001-of-00002.parquet")
    write(tmp_path / "named" / "Validation.parquet", 3)
    write(tmp_path / "named" / "test-0.parquet", 2)
    images = load(tmp_path / "named")
    assert (len(images.train), len(images.validation)) == (8, 3)
    assert len(load(tmp_path / "named", validation_split="test").validation) == 2
    for split, count in (("train", 4), ("val", 2)):
        write(tmp_path / "folders" / "default" / split / "0000.parquet", count)
    images = load(tmp_path / "folders")
    assert (len(images.train), len(images.validation)) == (4, 2)
    assert images.inventory.remarks[0] == "train: default/train/0000.parquet; validation: default/val/0000.parquet"


def test_a_mixture_is_refused_and_can_be_chosen(tmp_path):
    write(tmp_path / "train.parquet")
    write(tmp_path / "extra.parquet")
    with pytest.raises(DataError, match=r"extra\.parquet is named after no split"):
        load(tmp_path)
    assert captions(load(tmp_path, layout="splits")) == ["train"]
    assert captions(load(tmp_path, layout="plain")) == ["extra", "train"]
    with pytest.raises(DataError, match="parquet files, which have no class folders"):
        load(tmp_path, layout="classes")


@pytest.mark.parametrize(
    "name",
    ["pictures [v2]", "a*b", "really?", "{a,b}", "two  blanks", "%20", "a#b", "картины", "[[]", "x" * 200, "-", "~"],
)
def test_a_path_is_no_pattern(tmp_path, name):
    file = write(tmp_path / name / "a.parquet")
    write(tmp_path / "other" / "b.parquet")
    assert captions(load(file)) == ["a"]
    assert captions(load(tmp_path / name)) == ["a"]


def test_a_relative_path_with_glob_characters(tmp_path, monkeypatch):
    write(tmp_path / "pictures [v2]" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert captions(load("pictures [v2]/a.parquet")) == ["a"]


def test_a_path_that_cannot_be_opened(tmp_path):
    file = write(tmp_path / "a::b" / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: `datasets` cannot open a path with ::"):
        load(file)


def test_the_ending_in_capitals(tmp_path):
    assert captions(load(write(tmp_path / "A.PARQUET"))) == ["A"]


def test_files_with_other_columns_or_types(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", url=["x"] * 4)
    with pytest.raises(DataError, match=r"a\.parquet has no column 'url', and .*b\.parquet has"):
        load(tmp_path)
    write(tmp_path / "a.parquet", url=[1] * 4)
    with pytest.raises(DataError, match=r"b\.parquet has other types than .*a\.parquet: .*url"):
        load(tmp_path)


def test_a_column_without_values_in_one_file_and_narrow_numbers_in_another(tmp_path):
    write(tmp_path / "a.parquet", label=[None] * 4)
    write(tmp_path / "b.parquet", label=pa.array([1] * 4, pa.int8()))
    write(tmp_path / "c.parquet", label=pa.array([10] * 4, pa.int64()))
    images = load(tmp_path)
    assert images.class_names == ("1", "10")
    assert len(images.train) + len(images.validation) == 12


def test_a_damaged_file_is_named_before_anything_is_read(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as parquet") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_failed_downloads_are_left_out(tmp_path):
    write(tmp_path / "00000.parquet", jpg=[png(), None, png(), png()])
    with pytest.warns(UserWarning, match="1 of 4 rows have no picture in 'jpg'"):
        images = load(tmp_path)
    assert len(images.train) + len(images.validation) == 3


def test_lists_of_pictures_beside_pictures_are_none(tmp_path):
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "0.png").write_bytes(png())
    pyarrow.parquet.write_table(pa.table({"url": ["x"], "caption": ["red"]}), tmp_path / "00000.parquet")
    assert not holds_parquet(tmp_path, None)
    assert holds_parquet(tmp_path, "url")
    write(tmp_path / "00000.parquet")
    assert holds_parquet(tmp_path, None)


def test_folders_are_looked_into_where_they_are_few(tmp_path):
    write(tmp_path / "a" / "b" / "0.parquet")
    assert holds_parquet(tmp_path, None)
    for number in range(20):
        (tmp_path / f"class {number}").mkdir()
    assert not holds_parquet(tmp_path, None)
    write(tmp_path / "class 1" / "0.parquet")
    assert holds_parquet(tmp_path, None)


def test_class_names_of_a_data_set_that_was_saved_are_kept(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["odd", "even"]))
    rows = {"image": [{"bytes": png(), "path": None}] * 8, "label": [0, 1] * 4}
    for name in ("0.parquet", "1.parquet"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / name)
    assert load(tmp_path).class_names == ("odd", "even")
