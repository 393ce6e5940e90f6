"""Streams of pictures: the same items as at rest, in order, by share and by number, and without what cannot be read."""

import pickle
import warnings

import datasets
import pytest
import torch

from tests.shards import picture_bytes, sample, write_shards, write_tar
from wvq.data.dataset import load_images
from wvq.data.opening import open_images
from wvq.data.stream import Classes, DrawnBatch
from wvq.data.unreadable import DrawnPictures, Reading
from wvq.errors import DataError, UnreadablePictureError
from wvq.settings.data import DataConfig


@pytest.fixture(autouse=True)
def _own_tables(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def opened(folder, **changes):
    return open_images(DataConfig(**{"path": str(folder), "stream": True, "image_size": 16, **changes}))


@pytest.fixture
def four(tmp_path):
    """A stream of 18 training pictures in three shards, and 6 validation pictures in one."""
    write_shards(tmp_path / "train", [7, 1, 10])
    write_tar(tmp_path / "validation" / "0.tar", [sample(n) for n in range(18, 24)])
    return tmp_path


def numbers(pictures):
    return [int(picture.texts[0].split()[1]) for picture in pictures]


class TestItems:
    @pytest.mark.parametrize("changes", [{"crop": "center"}, {"crop": "ten"}, {"crop": "center", "flip": True}])
    def test_pictures_are_those_at_rest(self, four, changes):
        streamed, table = opened(four, **changes), load_images(DataConfig(str(four), image_size=16, **changes))
        assert streamed.class_names == table.class_names == ("0", "1", "2")
        for one, other in ((streamed.train, table.train), (streamed.validation, table.validation)):
            items = list(Reading(one.with_crop("center", flip=False)))
            view = other.with_crop("center", flip=False)
            assert len(items) == len(other)
            for number, item in enumerate(items):
                assert torch.equal(item["pixel_values"], view[number]["pixel_values"])
                assert item["label"] == other.labels[number]
            assert [picture.texts for picture in one.share()] == other.texts
            assert one.crop_recipe == other.crop_recipe

    @pytest.mark.parametrize("fit", [{"image_size": 16}, {"image_size": [12, 20]}, {"image_size": 16, "fit": "pad"}])
    def test_versions_of_ten_crops_are_those_at_rest(self, four, fit):
        streamed = opened(four, crop="ten", **fit).train
        table = load_images(DataConfig(str(four), crop="ten", **fit)).train
        assert streamed.crop_recipe == table.crop_recipe
        for number, picture in enumerate(streamed.share()):
            for turn in (0, 3, 9):
                assert streamed.version(picture, turn) == table.version(number, turn)

    @pytest.mark.parametrize("fit", [{"image_size": 16}, {"image_size": [12, 20], "fit": "pad", "pad_color": "edge"}])
    def test_a_crop_follows_the_seed_and_the_position(self, four, fit):
        train = opened(four, crop="random", flip=True, **fit).train
        picture = next(train.share())
        one, again, other = (train.version(picture, 0, position) for position in (5, 5, 6))
        assert one == again != other
        table = load_images(DataConfig(str(four), crop="random", flip=True, **fit)).train
        assert one == table.cropped((5, 0))[0]

    def test_parquet(self, tmp_path):
        """With a ClassLabel, and rows whose download failed."""
        kinds = {"jpg": datasets.Value("binary"), "label": datasets.ClassLabel(names=["b", "a"])}
        features = datasets.Features(kinds | {"caption": datasets.Value("string")})
        for shard in range(3):
            pictures = [picture_bytes(n) if n != 1 else None for n in range(shard * 4, shard * 4 + 4)]
            rows = {"jpg": pictures, "label": [0, 1, -1, 1], "caption": [f"picture {n}" for n in range(4)]}
            datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{shard:05d}.parquet")
        with pytest.warns(UserWarning, match=r"without a picture are left out: 1 of .* \(2\); .*00000\.parquet/row 1$"):
            images = opened(tmp_path, validation_fraction=0.3, seed=1)
        assert images.class_names == ("b", "a")
        pictures = [*images.train.share(), *images.validation.share()]
        assert len(pictures) == 11
        assert sorted(picture.label for picture in pictures) == [-1] * 3 + [0] * 3 + [1] * 5
        chosen = opened(tmp_path, classes=["b"], validation_fraction=0.3, seed=1)
        assert chosen.class_names == ("b",)
        assert [picture.label for picture in (*chosen.train.share(), *chosen.validation.share())] == [0, 0, 0]

    def test_rows_without_a_picture_are_counted_in_one_warning_at_the_end_of_a_pass(self, tmp_path):
        for shard, lacking in enumerate(([1, 2], [], [0, 5, 7])):
            samples = [sample(n) for n in range(40 * shard, 40 * shard + 40)]
            for row in lacking:
                del samples[row][1]["png"]
            write_tar(tmp_path / "train" / f"{shard}.tar", samples)
        write_tar(tmp_path / "val" / "0.tar", [sample(n) for n in range(4)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train = opened(tmp_path).train
            pictures = train.share()
            assert len([next(pictures) for _ in range(115)]) == 115
        message = (
            r"^rows without a picture are left out: 5 of the shards that were read \(3\); the first: 0\.tar/row 1$"
        )
        with pytest.warns(UserWarning, match=message):
            assert list(pictures) == []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(list(train.share())) == 115

    def test_a_loader_process_gets_the_stream_pickled(self, four):
        train = opened(four).train
        again = pickle.loads(pickle.dumps(train))
        assert numbers(again.share()) == numbers(train.share())


class TestOrder:
    def test_shares_are_whole_shards(self, four):
        train = opened(four).train
        assert numbers(train.share()) == list(range(18))
        assert numbers(train.share(0, 2)) == [*range(7), *range(8, 18)]
        assert numbers(train.share(1, 2)) == [7]
        assert numbers(train.share(3, 4)) == []

    def test_pictures_by_number(self, four):
        train = opened(four).train
        every = [int(picture) for picture in train.share()]
        assert every == sorted(every)
        chunks = [[every[0], every[3]], [every[4]], [every[7], every[9]], [], [every[17]]]
        assert [numbers(chunk) for chunk in train.at(chunks)] == [[0, 3], [4], [7, 9], [], [17]]
        with pytest.raises(DataError, match="is not what it was; start again"):
            list(train.at([[every[17] + 1]]))

    def test_the_first_pictures_by_index(self, four):
        first = opened(four).train.first(9)
        assert (len(first), first.labels, first.texts[8]) == (9, [n % 3 for n in range(9)], ("picture 8",))

    def test_a_pass_in_loader_processes(self, four):
        train = opened(four).train
        one, other = Reading(train, limit=11), Reading(train, limit=11, num_workers=2)
        items, batches = list(one), list(other.batches(4))
        assert one.used == other.used
        assert torch.equal(
            torch.cat([batch["pixel_values"] for batch in batches]),
            torch.stack([item["pixel_values"] for item in items]),
        )


class TestUnreadable:
    @pytest.fixture
    def spoilt(self, tmp_path):
        """Twenty pictures, of which numbers 3 and 15 are no pictures."""
        rows = [sample(n) for n in range(20)]
        for number in (3, 15):
            rows[number][1]["png"] = b"nothing"
        write_tar(tmp_path / "train-0.tar", rows[:10])
        write_tar(tmp_path / "train-1.tar", rows[10:])
        write_tar(tmp_path / "validation.tar", rows[:3])
        return tmp_path

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_pass_leaves_them_out(self, spoilt, workers):
        reading = Reading(opened(spoilt).train, num_workers=workers)
        assert sum(len(batch["index"]) for batch in reading.batches(3)) == 18
        assert [int(why.split(".png")[0][-6:]) for why in reading.left_out.values()] == [3, 15]
        assert next(iter(reading.left_out.values())).startswith("train-0.tar/000003.png (empty, or no picture")

    def test_training_shows_another_of_the_batch(self, spoilt):
        train = opened(spoilt).train
        pictures = list(train.share())
        batch = train.__getitems__(DrawnBatch([(n, 0, pictures[n]) for n in (2, 3, 4)], pictures[5:7]))
        asked, used = batch["requested"].tolist(), batch["index"].tolist()
        assert asked == [int(pictures[n]) for n in (2, 3, 4)]
        assert (used[0], used[2]) == (asked[0], asked[2])
        assert used[1] in [int(pictures[n]) for n in (2, 4, 5, 6)]
        assert [bool(why) for why in batch["failures"]] == [False, True, False]
        drawn = DrawnPictures(train)
        with pytest.warns(UserWarning, match=r"000003\.png \(.*\) cannot be read: in training another"):
            drawn.observe(batch)
        drawn.observe(batch)
        with pytest.warns(UserWarning, match=r"^1 pictures cannot be read: "):
            assert drawn.report() == {"unreadable_pictures": 1}

    def test_the_spares_of_a_batch_without_any(self, spoilt):
        train = opened(spoilt).train
        pictures = list(train.share())
        batch = train.__getitems__(DrawnBatch([(0, 0, pictures[3])], [pictures[15], pictures[9]]))
        assert batch["index"].tolist() == [int(pictures[9])]
        with pytest.raises(DataError, match="2 pictures drawn at random cannot be read"):
            train.__getitems__(DrawnBatch([(0, 0, pictures[3])], [pictures[15]]))

    def test_refuse(self, spoilt):
        with pytest.raises(UnreadablePictureError, match="000003"):
            opened(spoilt, unreadable="refuse")


class TestClasses:
    def test_rows_that_call_a_class_otherwise(self):
        found = Classes(("a", "b"), {"x": 0, "y": 1})
        assert [found.id_of(value) for value in ("x", "y", None)] == [0, 1, -1]
        with pytest.raises(DataError, match="class 'z', and the training shards do not have it"):
            found.id_of("z")

    def test_chosen_ones(self):
        chosen = Classes(("x",), {"x": 0}, chosen=True)
        assert [chosen.id_of(value) for value in ("x", "z", None)] == [0, None, None]

    def test_numbers(self):
        numbered = Classes(("a", "b"), {"0": 0, "1": 1}, chosen=True, numbered=True)
        assert [numbered.id_of(value) for value in ("1", None)] == [1, None]
        with pytest.raises(DataError, match="class '2', and 0 to 1 have names"):
            numbered.id_of("2")


def test_identities_follow_the_shards_and_the_classes(four):
    train = opened(four).train
    assert train.identity() == opened(four).train.identity() != opened(four).validation.identity()
    assert opened(four, classes=["1", "0"]).train.identity() != train.identity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of rows without a picture there are none
        assert len(list(train.share())) == 18
