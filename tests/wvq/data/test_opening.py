"""Opening a stream: splits, hold-out, classes, and what cannot be one."""

import json
import re

import pytest

from tests.shards import sample, write_shards, write_tar
from wvq.data import opening
from wvq.data.dataset import ImageSplits
from wvq.data.opening import hold_out_shards, open_images
from wvq.errors import ConfigError, DataError
from wvq.files.user_folders import cache_folder
from wvq.settings.data import DataConfig


def opened(folder, **changes):
    return open_images(DataConfig(**{"path": str(folder), "stream": True, "image_size": 16, **changes}))


def test_a_table_unless_a_stream_is_asked_for(picture_folder):
    assert isinstance(open_images(DataConfig(path=str(picture_folder), image_size=16)), ImageSplits)


class TestHoldOut:
    @pytest.mark.parametrize(
        ("count", "fraction", "held_out"), [(2, 0.9, 1), (10, 0.1, 1), (10, 0.11, 2), (40, 0.5, 20)]
    )
    def test_whole_shards(self, count, fraction, held_out):
        shards = tuple(f"{n}.tar" for n in range(count))
        train, validation = hold_out_shards(shards, DataConfig(validation_fraction=fraction, stream=True))
        assert (len(train), len(validation)) == (count - held_out, held_out)
        assert sorted(train + validation, key=shards.index) == list(shards)
        assert list(train) == sorted(train, key=shards.index)

    def test_the_seed_chooses(self):
        shards = tuple(f"{n}.tar" for n in range(20))
        chosen = {hold_out_shards(shards, DataConfig(seed=seed, stream=True))[1] for seed in range(5)}
        assert len(chosen) > 1

    def test_a_single_shard(self, tmp_path):
        with pytest.raises(DataError, match="has a single training shard, and of a stream whole shards are held out"):
            opened(write_shards(tmp_path, [8]))

    def test_a_split_by_name(self, tmp_path):
        write_shards(tmp_path / "train", [6])
        write_tar(tmp_path / "test" / "0.tar", [sample(9)])
        images = opened(tmp_path, validation_split="test")
        assert [picture.texts for picture in images.validation.share()] == [("picture 9",)]
        with pytest.raises(DataError, match=r"validation_split: the data has no split 'tset' \(did you mean \"test\""):
            opened(tmp_path, validation_split="tset")


class TestClasses:
    def test_found_once_and_kept(self, tmp_path, monkeypatch):
        folder = write_shards(tmp_path, [6, 6, 6])
        assert opened(folder).class_names == ("0", "1", "2")
        monkeypatch.setattr(opening.PictureStream, "labels", lambda self, shard: iter(["9"]))
        assert opened(folder).class_names == ("0", "1", "2")  # from the cache
        assert any(json.loads(file.read_text()) for file in (cache_folder() / "classes").glob("*.json"))

    def test_named_by_number(self, tmp_path):
        images = opened(write_shards(tmp_path, [6, 6, 6]), classes=["x", "y", "z"])
        assert images.class_names == ("x", "y", "z")
        assert [picture.label for picture in images.train.share()] == [0, 1, 2] * 4
        with pytest.raises(DataError, match="class '2', and 0 to 1 have names"):
            opened(tmp_path, classes=["x", "y"])

    def test_chosen_by_name(self, tmp_path):
        images = opened(write_shards(tmp_path, [6, 6, 6]), classes=["2", "0"])
        assert images.class_names == ("2", "0")
        assert [picture.label for picture in images.train.share()] == [1, 0] * 4

    def test_none(self, tmp_path):
        folder = write_shards(tmp_path, [6, 6], parts=("txt",))
        images = opened(folder)
        assert (images.class_names, images.train.has_captions) == ((), True)
        with pytest.raises(DataError, match="classes: the data has no class column"):
            opened(folder, classes=["a"])

    def test_shards_elsewhere_are_not_fetched_for_them(self, tmp_path, monkeypatch):
        monkeypatch.setattr(opening, "URL", re.compile("/"))
        folder = write_shards(tmp_path, [6, 6])
        with pytest.raises(DataError, match=r"every shard would have to be fetched; list them in data\.classes"):
            opened(folder)
        assert opened(folder, classes=["x", "y", "z"]).class_names == ("x", "y", "z")


def test_what_was_taken_is_printed(tmp_path, capsys):
    opened(write_shards(tmp_path, [4] * 12))
    line = f"{tmp_path}: 10 tar shards for training, 2 held out; 3 classes, captions; read as a stream\n"
    assert line in capsys.readouterr().err


def test_shards_without_pictures_are_refused(tmp_path):
    write_tar(tmp_path / "train.tar", [sample(n) for n in range(4)])
    write_tar(tmp_path / "validation.tar", [("a", {"txt": "no picture"})])
    with (
        pytest.warns(UserWarning, match="has no picture"),
        pytest.raises(DataError, match="leaves no validation pictures"),
    ):
        opened(tmp_path)


def test_settings_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.shuffle_buffer must be an integer of at least 1"):
        opened(write_shards(tmp_path, [4, 4]), shuffle_buffer=0)
