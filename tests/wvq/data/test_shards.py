"""Which files are shards, which split they are of, and what becomes of their samples at rest."""

import json
import shutil
from types import SimpleNamespace

import datasets
import pytest

from tests.shards import picture_bytes, sample, write_shards, write_tar
from wvq.data import shards as shards_module
from wvq.data.dataset import load_images
from wvq.data.inventory import Inventory
from wvq.data.shards import expand_braces, find_shards
from wvq.errors import ConfigError, DataError, DownloadError
from wvq.settings.data import DataConfig


@pytest.fixture(autouse=True)
def _own_tables(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{0..2}.tar", ["a-0.tar", "a-1.tar", "a-2.tar"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("https://host/x-{00..01}.tar", ["https://host/x-00.tar", "https://host/x-01.tar"]),
        ("a{b}.tar", ["a{b}.tar"]),
    ],
)
def test_patterns(pattern, names):
    assert expand_braces(pattern) == names


class TestFindShards:
    def test_a_folder_as_img2dataset_writes_it(self, tmp_path):
        write_shards(tmp_path, [1, 1])
        for name in ("00000_stats.json", "00000.parquet", "_SUCCESS", ".hidden.tar", "_x.tar"):
            (tmp_path / name).write_bytes(b"{}")
        inventory = Inventory()
        found = find_shards(DataConfig(path=str(tmp_path)), inventory)
        assert (found.kind, found.splits) == (
            "tar",
            {"train": (str(tmp_path / "00000.tar"), str(tmp_path / "00001.tar"))},
        )
        assert inventory.passed_over == {
            ".json": ["00000_stats.json"],
            ".parquet": ["00000.parquet"],
            ".tar": ["_x.tar"],
            "no ending": ["_SUCCESS"],
        }

    def test_a_file_a_pattern_and_folders_of_splits(self, tmp_path):
        write_shards(tmp_path / "train", [1, 1])
        write_shards(tmp_path / "val", [1])
        one = str(tmp_path / "train" / "00000.tar")
        assert find_shards(DataConfig(path=one), Inventory()).splits == {"train": (one,)}
        by_pattern = find_shards(DataConfig(path=f"{tmp_path}/train/{{00000..00001}}.tar"), Inventory())
        whole = find_shards(DataConfig(path=str(tmp_path)), Inventory())
        assert by_pattern.splits["train"] == whole.splits["train"]
        assert whole.splits["validation"] == (str(tmp_path / "val" / "00000.tar"),)

    def test_only_names_within_the_data_say_the_split(self, tmp_path):
        """A file or a pattern is what it is given as, wherever it lies."""
        write_shards(tmp_path / "test", [1, 1])
        one = str(tmp_path / "test" / "00000.tar")
        assert find_shards(DataConfig(path=one), Inventory()).splits == {"train": (one,)}
        pattern = find_shards(DataConfig(path=f"{tmp_path}/test/{{00001,00000}}.tar"), Inventory())
        assert pattern.splits == {"train": (str(tmp_path / "test" / "00001.tar"), one)}
        write_shards(tmp_path / "train", [1])
        both = find_shards(DataConfig(path=f"{tmp_path}/{{train,test}}/00000.tar"), Inventory())
        assert both.splits == {"train": (str(tmp_path / "train" / "00000.tar"),), "test": (one,)}

    def test_an_archive_among_pictures_is_no_shard(self, picture_folder, tmp_path):
        shutil.copytree(picture_folder, tmp_path / "pictures")
        write_shards(tmp_path / "pictures", [2])
        config = DataConfig(path=str(tmp_path / "pictures"), image_size=16)
        assert find_shards(config, Inventory()) is None
        assert load_images(config).inventory.passed_over == {".tar": ["00000.tar"]}
        write_shards(tmp_path / "shards", [2])
        (tmp_path / "shards" / "preview.png").write_bytes(picture_bytes(0))
        assert find_shards(DataConfig(path=str(tmp_path / "shards")), Inventory()) is not None

    def test_layouts(self, tmp_path):
        write_shards(tmp_path, [1])
        write_shards(tmp_path, [1], name="train-")
        inventory = Inventory()
        chosen = find_shards(DataConfig(path=str(tmp_path), layout="splits"), inventory)
        assert chosen.splits == {"train": (str(tmp_path / "train-00000.tar"),)}
        assert inventory.passed_over == {".tar": ["00000.tar"]}
        plain = find_shards(DataConfig(path=str(tmp_path), layout="plain"), Inventory())
        assert len(plain.splits["train"]) == 2
        with pytest.raises(DataError, match=r"no class folders: leave data\.layout out"):
            find_shards(DataConfig(path=str(tmp_path), layout="classes"), Inventory())
        with pytest.raises(ConfigError, match=r"data\.layout says what the folders of a path are"):
            find_shards(DataConfig(path=str(tmp_path / "00000.tar"), layout="plain"), Inventory())

    @pytest.mark.parametrize("name", ["{0..1}", "a [v2]", "*", "{a,b}", "100% #1"])
    def test_a_path_that_exists_is_no_pattern(self, tmp_path, name):
        write_shards(tmp_path / name, [2], parts=())
        images = load_images(DataConfig(path=str(tmp_path / name), image_size=16, validation_fraction=0.5))
        assert len(images.train) + len(images.validation) == 2

    def test_a_missing_shard_is_named(self, tmp_path):
        write_shards(tmp_path, [1])
        with pytest.raises(DataError, match=r"00001\.tar, which .* names, does not exist"):
            find_shards(DataConfig(path=f"{tmp_path}/{{00000..00001}}.tar"), Inventory())

    def test_files_with_and_without_a_split_are_doubtful(self, tmp_path):
        write_shards(tmp_path, [1])
        write_shards(tmp_path, [1], name="train-")
        with pytest.raises(DataError, match=r"^00000\.tar is named after no split, .*layout splits .*layout plain"):
            find_shards(DataConfig(path=str(tmp_path)), Inventory())

    def test_other_paths_are_no_shards(self, tmp_path, picture_folder):
        for path in ("openmoji", str(picture_folder), str(tmp_path / "none")):
            assert find_shards(DataConfig(path=path), Inventory()) is None
        with pytest.raises(DataError, match=r"data.stream: .* holds no \.tar and no \.parquet files"):
            find_shards(DataConfig(path=str(picture_folder), stream=True), Inventory())

    @pytest.mark.parametrize(("kind", "stream"), [("tar", False), ("tar", True), ("parquet", True)])
    def test_a_data_set_of_the_hub(self, monkeypatch, kind, stream):
        """Its splits are those that it has there."""
        splits = {split: [f"hf://datasets/a/b@1/{split}-{n}.{kind}" for n in range(2)] for split in ("train", "dev")}
        files = [SimpleNamespace(rfilename=file) for files in splits.values() for file in files]
        api = SimpleNamespace(dataset_info=lambda name: SimpleNamespace(siblings=files))
        builder = SimpleNamespace(config=SimpleNamespace(data_files=splits))
        monkeypatch.setattr(shards_module, "HfApi", lambda: api)
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, subset: builder)
        found = find_shards(DataConfig(path="a/b", stream=stream), Inventory())
        assert (found.kind, found.splits) == (kind, {split: tuple(files) for split, files in splits.items()})
        files[:] = [SimpleNamespace(rfilename="data.parquet")]
        assert find_shards(DataConfig(path="a/b"), Inventory()) is None  # read by `datasets` as it is

    def test_a_data_set_of_the_hub_with_several_subsets(self, monkeypatch):
        def needs_a_name(name, subset):
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'fr']")

        monkeypatch.setattr(datasets, "load_dataset_builder", needs_a_name)
        with pytest.raises(DataError, match=r"^data\.subset: a/b does not have None: .* \['en', 'fr'\]$"):
            find_shards(DataConfig(path="a/b", stream=True), Inventory())

    def test_a_hub_that_cannot_be_reached(self):
        assert find_shards(DataConfig(path="owner/name"), Inventory()) is None  # `datasets` may have it in its cache
        with pytest.raises(DownloadError, match="cannot be asked for its files"):
            find_shards(DataConfig(path="owner/name", stream=True), Inventory())


class TestAtRest:
    def test_classes_and_captions(self, tmp_path):
        images = load_images(DataConfig(path=str(write_shards(tmp_path, [20, 10])), image_size=16))
        assert images.class_names == ("0", "1", "2")
        numbers = [int(text.split()[1]) for text in images.train.captions]
        assert images.train.labels == [number % 3 for number in numbers]
        assert len(images.train) + len(images.validation) == 30

    def test_fields_of_json(self, tmp_path):
        """Also where a field is null at first and a text later on."""
        config = DataConfig(path=str(write_shards(tmp_path, [8, 8], parts=("json",))), image_size=16)
        images = load_images(config)
        assert images.class_names == ("0", "1", "2")
        assert images.train.captions[0].startswith("picture ")

    def test_numbers_sort_as_numbers_and_take_names(self, tmp_path):
        pictures = [(f"{n:03d}", {"png": picture_bytes(n), "cls": str(n)}) for n in (0, 1, 2, 10) for _ in range(1)]
        twice = [(f"{key}{copy}", parts) for key, parts in pictures for copy in "ab"]
        write_tar(tmp_path / "00000.tar", twice)
        data = {"path": str(tmp_path), "image_size": 16, "validation_fraction": 0.4}
        assert load_images(DataConfig(**data)).class_names == ("0", "1", "2", "10")
        named = load_images(DataConfig(**data, classes=[f"kind {letter}" for letter in "abcdefghijk"]))
        assert named.class_names[10] == "kind k"
        assert sorted({*named.train.labels, *named.validation.labels}) == [0, 1, 2, 10]
        with pytest.raises(DataError, match="a sample is of class 10, and there are names for 0 to 1"):
            load_images(DataConfig(**data, classes=["x", "y"]))

    def test_names_of_classes_and_named_parts(self, tmp_path):
        rows = [
            (
                f"{n:03d}",
                {"seg.png": picture_bytes(99), "jpg": picture_bytes(n, "JPEG"), "cls": "ab"[n % 2], "alt": "x"},
            )
            for n in range(12)
        ]
        write_tar(tmp_path / "train.tar", rows)
        images = load_images(DataConfig(path=str(tmp_path), image_size=16, caption_column="alt"))
        assert images.class_names == ("a", "b")
        assert set(images.train.captions) == {"x"}
        assert images.train.table.pictures[0]["image"]["path"].endswith(".jpg")
        with pytest.raises(DataError, match="label_column: the data has no column 'kind'"):
            load_images(DataConfig(path=str(tmp_path), image_size=16, label_column="kind"))

    def test_without_classes_and_captions(self, tmp_path):
        images = load_images(DataConfig(path=str(write_shards(tmp_path, [12], parts=())), image_size=16))
        assert (images.class_names, images.train.labels, images.train.captions) == ((), None, None)

    def test_samples_without_a_picture_are_left_out_and_counted(self, tmp_path):
        rows = [sample(n) for n in range(12)]
        write_tar(tmp_path / "00000.tar", [*rows, ("999", {"json": json.dumps({"caption": "gone"})})])
        with pytest.warns(UserWarning, match="1 of 13 rows have no picture"):
            images = load_images(DataConfig(path=str(tmp_path), image_size=16))
        assert len(images.train) + len(images.validation) == 12

    def test_a_rewritten_shard_is_read_anew(self, tmp_path):
        config = DataConfig(path=str(write_shards(tmp_path, [12])), image_size=16)
        first = load_images(config)
        write_shards(tmp_path, [15])
        again = load_images(config)
        assert (len(first.train) + len(first.validation), len(again.train) + len(again.validation)) == (12, 15)

    @pytest.mark.parametrize("keep", [10, 15, 20, 0])
    def test_a_damaged_shard_is_named(self, tmp_path, keep):
        """Also where a download stopped between two members, which readers of tar files take for the end."""
        file = write_shards(tmp_path, [8]) / "00000.tar"
        file.write_bytes(file.read_bytes()[: keep * 512] or b"<html>not found</html>" * 100)
        with pytest.raises(DataError, match=r"00000.tar is cut short, or no tar file; fetch it again") as caught:
            load_images(DataConfig(path=str(tmp_path), image_size=16))
        assert "\n" not in str(caught.value)

    def test_parts_that_are_no_text(self, tmp_path):
        write_tar(tmp_path / "00000.tar", [("a", {"png": picture_bytes(0), "json": b"\xff{"})])
        with pytest.raises(DataError, match=r"a\.json is not JSON"):
            load_images(DataConfig(path=str(tmp_path), image_size=16))

    @pytest.mark.parametrize("part", ["txt", "cls"])
    def test_parts_in_another_encoding(self, tmp_path, part):
        write_tar(tmp_path / "00000.tar", [("a", {"png": picture_bytes(0), part: "café".encode("latin-1")})])
        with pytest.raises(DataError, match=rf"00000\.tar: a\.{part} line 1 is not UTF-8 text \(byte e9\): convert it"):
            load_images(DataConfig(path=str(tmp_path), image_size=16))

    def test_captions_in_utf_16_with_a_byte_order_mark(self, tmp_path):
        rows = [(str(n), {"png": picture_bytes(n), "txt": f"café {n}".encode("utf-16")}) for n in range(12)]
        write_tar(tmp_path / "00000.tar", rows)
        captions = load_images(DataConfig(path=str(tmp_path), image_size=16)).train.captions
        assert captions is not None
        assert all(caption.startswith("café ") for caption in captions)
