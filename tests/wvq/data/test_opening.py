"""Opening a stream: splits, hold-out, classes, and what cannot be one."""

import io
import json
import os

import fsspec
import pytest

from tests.shards import sample, write_shards, write_tar
from wvq.data import opening
from wvq.data.dataset import ImageSplits, load_images
from wvq.data.fingerprint import fingerprint_of
from wvq.data.opening import hold_out_shards, open_images
from wvq.errors import ConfigError, DataError, DownloadError
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

    def test_found_without_a_cache(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("WVQ_CACHE", str(tmp_path / "file"))
        assert opened(write_shards(tmp_path / "shards", [3, 3])).class_names == ("0", "1", "2")

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


def test_a_stream_has_no_fingerprint(tmp_path):
    images = opened(write_shards(tmp_path, [4, 4]))
    assert fingerprint_of(images, str(tmp_path)) is None


class TestInventory:
    def test_shards_are_counted(self, tmp_path):
        folder = write_shards(tmp_path, [4] * 12)
        (folder / "00000_stats.json").write_text("{}")
        assert str(opened(folder).inventory) == (
            "tar shards: 10 training, 2 held out (10% of the shards); 3 classes (0, 1, 2); captions for 40 of the "
            "first 40 pictures; read as a stream, whose pictures are not compared with those of other stages; "
            "passed over: 1 file (.json: 00000_stats.json)"
        )

    def test_a_split_is_named(self, tmp_path):
        write_shards(tmp_path / "train", [4], parts=())
        write_shards(tmp_path / "val", [4], parts=())
        assert str(opened(tmp_path).inventory).startswith(
            "tar shards: 1 training, 1 held out (the split validation); no classes; no captions; "
            "train: train/00000.tar; validation: val/00000.tar; read as a stream"
        )


def test_shards_without_pictures_are_refused(tmp_path):
    write_tar(tmp_path / "train.tar", [sample(n) for n in range(4)])
    write_tar(tmp_path / "validation.tar", [("a", {"txt": "no picture"})])
    with (
        pytest.warns(UserWarning, match="rows without a picture are left out: 1 "),
        pytest.raises(DataError, match="leaves no validation pictures"),
    ):
        opened(tmp_path)


def test_what_needs_all_pictures_by_number_refuses_a_stream(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.stream: here all pictures are needed by number; leave it out"):
        load_images(DataConfig(path=str(write_shards(tmp_path, [4, 4])), stream=True))


class TestElsewhere:
    @pytest.fixture
    def memory(self, tmp_path):
        """The address of three shards in a file system that is none of the disk's."""
        files = fsspec.filesystem("memory")
        for file in write_shards(tmp_path, [4, 5, 3]).glob("*.tar"):
            files.pipe(f"/shards/{file.name}", file.read_bytes())
        yield "memory://shards/{00000..00002}.tar"
        files.rm("/shards", recursive=True)

    def test_shards_are_read_from_there(self, memory):
        images = opened(memory, classes=["x", "y", "z"])
        shown = sorted(int(text[0].split()[1]) for part in (images.train, images.validation) for text in texts(part))
        assert shown == list(range(12))

    def test_classes_must_be_named(self, memory):
        """All shards would be fetched to find them."""
        with pytest.raises(DataError, match=r"^data\.classes: .*every shard would have to be fetched; list them there"):
            opened(memory)

    def test_a_shard_that_is_not_there(self, memory):
        with pytest.raises(DownloadError, match=r"^memory://shards/0000\d\.tar cannot be reached \(FileNotFoundError"):
            texts(opened("memory://shards/{00003..00005}.tar", classes=["x"]).train)

    @pytest.mark.parametrize("keep", [10, 15, 0])
    def test_a_shard_that_is_cut_short_is_named(self, memory, keep):
        """Also between two members, which readers of tar files take for the end."""
        files = fsspec.filesystem("memory")
        files.pipe("/shards/00001.tar", files.cat_file("/shards/00001.tar")[: keep * 512])
        with pytest.raises(DataError, match=r"^memory://shards/00001\.tar is cut short, or no tar file"):
            texts(opened(memory, classes=["x", "y", "z"]).train)

    def test_the_end_of_a_shard_that_is_only_read_in_order_is_not_looked_at(self, memory, monkeypatch):
        """As of a server that gives no parts of files."""

        def seek(file, offset, whence=os.SEEK_SET):
            if whence == os.SEEK_END:
                raise ValueError("only reading from the beginning is supported")
            return io.BytesIO.seek(file, offset, whence)

        files = fsspec.filesystem("memory")
        monkeypatch.setattr(type(files.open("/shards/00001.tar")), "seek", seek)
        images = opened(memory, classes=["x", "y", "z"])
        assert len(texts(images.train)) + len(texts(images.validation)) == 12

    def test_what_http_needs_is_named(self, monkeypatch):
        def missing(*arguments, **options):
            raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

        monkeypatch.setattr(fsspec, "get_fs_token_paths", missing)
        with pytest.raises(DownloadError, match=r"requires \"requests\".*; pip install 'wvq\[http\]'$"):
            opened("http://nowhere.test/{0..3}.tar", classes=["x"])


def texts(images):
    return [picture.texts for picture in images.share()]
