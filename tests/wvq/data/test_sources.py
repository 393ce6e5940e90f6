"""Tests of where pictures come from: parquet, and the errors of missing paths and unreachable Hub ids."""

import io
import os

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from wvq.data.dataset import load_images
from wvq.data.inventory import Inventory
from wvq.data.sources import read_source
from wvq.errors import ConfigError, DataError, DownloadError
from wvq.settings.data import DataConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def encoded(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def pictures(count):
    columns = {"image": [encoded((i, 0, 0)) for i in range(count)], "label": [i % 2 for i in range(count)]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]))
    return datasets.Dataset.from_dict(columns, features=features)


def test_parquet_file_keeps_class_names(tmp_path):
    pictures(20).to_parquet(tmp_path / "test_data.parquet")
    splits = load_images(DataConfig(path=str(tmp_path / "test_data.parquet"), image_size=8, crop="center"))
    assert splits.class_names == ("even", "odd")
    assert (len(splits.train), len(splits.validation)) == (18, 2)
    item = splits.train[3]
    assert item["pixel_values"].shape == (3, 8, 8)
    assert item["label"] == splits.train.labels[3]


def test_parquet_folder_with_splits(tmp_path):
    (tmp_path / "data").mkdir()
    pictures(6).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    pictures(4).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    splits = load_images(DataConfig(path=str(tmp_path), image_size=8))
    assert (len(splits.train), len(splits.validation)) == (6, 4)


def test_parquet_of_another_writer(tmp_path):
    rows = {"picture": [encoded("red")] * 6, "kind": ["a", "b"] * 3, "caption": list("uvwxyz")}
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "a.parquet")
    splits = load_images(DataConfig(path=str(tmp_path / "a.parquet"), image_size=8, label_column="kind"))
    assert splits.class_names == ("a", "b")
    assert sorted(splits.train.captions + splits.validation.captions) == list("uvwxyz")
    assert splits.train.picture(0).getpixel((0, 0)) == (255, 0, 0)


def test_broken_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet") as caught:
        read_source(DataConfig(path=str(tmp_path / "a.parquet")), Inventory())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "/no/such/folder",
        "./pets",
        "../pets",
        "~/no-such",
        "a/b/c",
        "pets.parquet",
        "PETS.PARQUET",
        "/" + "x" * 300,
    ],
)
def test_what_looks_like_a_path_is_not_looked_up(path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(DataError, match="is no file or folder"):
        read_source(DataConfig(path=path), Inventory())


@pytest.mark.parametrize(("path", "why"), [("", "it is empty"), ("~no-such-user/pets", "has no home folder here")])
def test_a_path_that_is_none_is_one_line(path, why):
    with pytest.raises(ConfigError, match=f"^data.path must be a path or a name, .*{why}"):
        read_source(DataConfig(path=path), Inventory())


def test_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is neither a file nor a folder"):
        read_source(DataConfig(path=str(tmp_path / "pipe")), Inventory())


@pytest.mark.parametrize("path", ["openmoji", "owner/pictures", "a.parquet"])
def test_a_layout_is_for_folders(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=f"^data.layout says .* and '{path}' is no folder here"):
        read_source(DataConfig(path=path, layout="plain"), Inventory())


def test_a_file_that_is_not_parquet(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.zip is a file and not parquet"):
        read_source(DataConfig(path=str(tmp_path / "a.zip")), Inventory())


def test_hub_id_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DownloadError, match=r"^data\.path: 'some-owner/some-pictures' is no folder here.*network"
    ) as caught:
        read_source(DataConfig(path="some-owner/some-pictures"), Inventory())
    assert "\n" not in str(caught.value)


def test_hub_data_set_is_read_with_its_subset(monkeypatch):
    def fake_hub(path, name):
        assert (path, name) == ("owner/pictures", "small")
        return datasets.DatasetDict(train=pictures(20), test=pictures(6))

    monkeypatch.setattr(datasets, "load_dataset", fake_hub)
    config = DataConfig(path="owner/pictures", subset="small", validation_split="test", image_size=8)
    splits = load_images(config)
    assert (len(splits.train), len(splits.validation)) == (20, 6)
    assert splits.source == "owner/pictures/small"


def test_hub_data_set_that_needs_a_subset(monkeypatch):
    def fake_hub(path, name):
        raise ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']")

    monkeypatch.setattr(datasets, "load_dataset", fake_hub)
    with pytest.raises(DataError, match=r"^data\.subset: owner/pictures .*\['a', 'b'\]") as caught:
        read_source(DataConfig(path="owner/pictures"), Inventory())
    assert "\n" not in str(caught.value)
