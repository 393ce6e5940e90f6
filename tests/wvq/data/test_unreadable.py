"""Tests of sets with unreadable pictures: what training draws instead, what passes leave out, counts and limits."""

import copy
import shutil

import pytest
import torch

import wvq.data.unreadable
from wvq.data.dataset import load_images
from wvq.data.unreadable import DrawnPictures, Reading, refuse_too_many, summary
from wvq.errors import ConfigError, DataError, UnreadablePictureError, WVQError, from_worker
from wvq.tokenizer.train import train_tokenizer

BROKEN = ("circle/02.png", "cross/11.png")  # the first is held out if a fifth of the pictures is
SHAPES = ("circle", "cross", "square")


@pytest.fixture
def spoil(tmp_path, picture_folder):
    """A function that copies the 60 pictures and breaks some; returns their folder."""

    def write(*names):
        shutil.copytree(picture_folder, tmp_path / "pictures")
        for name in names:
            (tmp_path / "pictures" / name).write_bytes(b"no picture")
        return tmp_path / "pictures"

    return write


@pytest.fixture
def train_set(spoil, tiny_data):
    return load_images(tiny_data(spoil(*BROKEN), validation_fraction=0.02, crop="random", flip=True)).train


def names(dataset):
    return ["/".join(row["image"]["path"].rsplit("/", 2)[1:]) for row in dataset.table.pictures]


def broken_indices(dataset):
    return [index for index, name in enumerate(names(dataset)) if name in BROKEN]


class TestDraws:
    def test_another_picture_takes_the_place_and_the_same_again(self, train_set):
        again = load_images_like(train_set)
        broken = broken_indices(train_set)
        assert broken
        shown = set()
        for position in range(20):
            item, other = train_set[(position, broken[0])], again[(position, broken[0])]
            assert item["requested"] == broken[0]
            assert item["index"] not in broken
            assert item["label"] == train_set.labels[item["index"]]
            assert torch.equal(item["pixel_values"], other["pixel_values"])
            assert torch.equal(item["pixel_values"], train_set[(position, item["index"])]["pixel_values"])
            shown.add(item["index"])
        assert len(shown) > 10  # not one neighbour over and over

    def test_sound_pictures_are_as_ever(self, train_set, spoil, tiny_data, tmp_path):
        before = {
            name: train_set[(7, index)]["pixel_values"]
            for index, name in enumerate(names(train_set))
            if name not in BROKEN
        }
        (tmp_path / "pictures").rename(tmp_path / "other")
        whole = load_images(tiny_data(spoil(), validation_fraction=0.02, crop="random", flip=True)).train
        for index, name in enumerate(names(whole)):
            assert name in BROKEN or torch.equal(whole[(7, index)]["pixel_values"], before[name])

    def test_an_index_asks_for_this_very_picture(self, train_set):
        with pytest.raises(UnreadablePictureError, match=r"circle/02\.png cannot be read"):
            train_set[names(train_set).index("circle/02.png")]

    def test_refuse(self, spoil, tiny_data):
        with pytest.raises(DataError, match=r"(02|11)\.png cannot be read as a picture"):
            load_images(tiny_data(spoil(*BROKEN), unreadable="refuse"))
        with pytest.raises(ConfigError, match=r"^data.unreadable must be one of skip, refuse, got 'drop'"):
            load_images(tiny_data("/nowhere", unreadable="drop"))

    def test_a_view_keeps_the_policy(self, train_set):
        train_set.unreadable = "refuse"
        view = train_set.with_crop(crop="center")
        with pytest.raises(UnreadablePictureError):
            view[(0, broken_indices(train_set)[0])]

    def test_a_set_without_readable_pictures(self, train_set):
        train_set.store._failures = dict.fromkeys(range(len(train_set)), ("x.png", "gone"))
        with pytest.raises(DataError, match=r"100 pictures drawn at random cannot be read; the last: x\.png"):
            train_set[(0, 0)]


def load_images_like(dataset):
    """The same pictures, none of them looked at yet."""
    other = copy.copy(dataset)
    other.store = type(dataset.store)(dataset.table.pictures, dataset.store.largest)
    return other


class TestReading:
    def test_leaves_out_and_says_so(self, train_set):
        reading = Reading(train_set)
        items = list(reading)
        broken = broken_indices(train_set)
        assert [item["index"] for item in items] == reading.used
        assert reading.used == [index for index in range(len(train_set)) if index not in broken]
        assert list(reading.left_out) == broken
        (line,) = reading.warnings("evaluation")
        assert line.startswith(f"{len(broken)} of {len(train_set)} pictures cannot be read: ")
        assert "circle/02.png (empty, or no picture format" in line
        reading.refuse_too_many()

    def test_limit_and_order(self, train_set):
        broken = broken_indices(train_set)[0]
        reading = Reading(train_set, [9, broken, 7, 8], limit=2)
        assert [item["index"] for item in reading] == [9, 7]
        assert reading.used == [9, 7]
        assert reading.looked_at == 3
        assert Reading(train_set, [1]).warnings("export") == []

    def test_refuse(self, train_set):
        train_set.unreadable = "refuse"
        with pytest.raises(UnreadablePictureError):
            list(Reading(train_set))


class TestLimits:
    @pytest.mark.parametrize(
        ("bad", "looked_at", "refused"),
        [
            (0, 0, False),
            (1, 1, True),
            (5, 5, True),
            (10, 11, False),
            (11, 220, False),
            (11, 219, True),
            (500, 9999, True),
        ],
    )
    def test_share_and_number(self, bad, looked_at, refused):
        found = [f"{index}.png (reason)" for index in range(bad)]
        if not refused:
            return refuse_too_many(found, looked_at)
        with pytest.raises(DataError, match=f"^{bad} of {looked_at:,} pictures cannot be read: 0.png .*too many"):
            refuse_too_many(found, looked_at)

    def test_the_first_few_are_named(self):
        assert summary(["a (x)", "b (y)"], 9) == "2 of 9 pictures cannot be read: a (x), b (y)"
        assert summary(["a", "b", "c", "d", "e"], 1000) == "5 of 1,000 pictures cannot be read: a, b, c and 2 more"

    @pytest.mark.parametrize(
        "broken", [[f"{shape}/{i:02d}.png" for shape in SHAPES for i in range(n)] for n in (9, 20)]
    )
    def test_a_broken_set_is_refused_before_work_begins(self, spoil, tiny_data, broken):
        with pytest.raises(DataError, match=r"pictures cannot be read: .* and \d+ more: too many to go on") as caught:
            load_images(tiny_data(spoil(*broken)))
        assert "\n" not in str(caught.value)


def batch(requested, index):
    return {"requested": torch.tensor(requested), "index": torch.tensor(index)}


class TestDrawnPictures:
    def test_counts_a_picture_once_and_warns_of_the_first(self, train_set):
        first, second = broken_indices(train_set)
        drawn = DrawnPictures(train_set)
        drawn.observe(batch([0, 1], [0, 1]))
        assert not drawn.failures
        with pytest.warns(UserWarning, match=r"02\.png \(.*\) cannot be read: in training another") as caught:
            drawn.observe(batch([first, 1, second, first], [5, 1, 6, 8]))
        assert len(caught) == 1
        message = f"2 of {len(train_set)} pictures cannot be read: .*others took their place"
        with pytest.warns(UserWarning, match=message):
            assert drawn.report() == {"unreadable_pictures": 2}

    def test_processes_join_what_they_found(self, train_set, monkeypatch):
        drawn = DrawnPictures(train_set)
        drawn.failures = {3: "c"}
        monkeypatch.setattr(wvq.data.unreadable, "gather_objects", lambda found: [found, {1: "a", 3: "c"}])
        drawn.merge()
        assert drawn.failures == {1: "a", 3: "c"}

    def test_too_many(self, train_set):
        train_set.store._failures = dict.fromkeys(range(12), ("x.png", "gone"))
        drawn = DrawnPictures(train_set)
        with pytest.warns(UserWarning, match="in training"):
            drawn.observe(batch(range(12), [20] * 12))  # too few draws yet to tell
        with pytest.raises(DataError, match=f"12 of {len(train_set)} pictures cannot be read"):
            drawn.observe(batch(range(12, len(train_set)), range(12, len(train_set))))

    def test_sets_that_decode_nothing_are_not_watched(self):
        drawn = DrawnPictures([{"codes": 0}])
        drawn.observe({"codes": torch.zeros(1)})
        drawn.merge()
        assert drawn.report() == {}


def test_an_error_of_a_loader_process_is_one_line_again():
    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback\n  ...\nwvq.errors.DataError: a: b\n"
    error = from_worker(DataError(text))
    assert (type(error), str(error)) == (DataError, "a: b")
    assert str(from_worker(WVQError("plain: line"))) == "plain: line"


@pytest.mark.usefixtures("fresh_accelerator")
class TestTraining:
    @pytest.fixture
    def run(self, spoil, tiny_tokenizer_recipe, tmp_path):
        folder = spoil(*BROKEN)

        def train(name, resume=False, **train):
            recipe = tiny_tokenizer_recipe(tmp_path / name, train={"images": 128, **train})
            recipe.data.path, recipe.data.crop = str(folder), "random"
            with pytest.warns(UserWarning, match="cannot be read"):
                result = train_tokenizer(recipe, resume=resume)
            return result, (tmp_path / name / "model.safetensors").read_bytes()

        return train

    def test_the_result_tells_the_number_and_loader_processes_change_nothing(self, run):
        (plain, weights), (workers, same_weights) = run("plain"), run("workers", num_workers=2)
        assert plain["unreadable_pictures"] == workers["unreadable_pictures"] == 1
        assert (plain["num_unreadable"], plain["num_images"]) == (1, 11)
        assert weights == same_weights

    def test_a_resumed_run_ends_with_the_same_weights_and_number(self, run, tmp_path, picture_folder):
        whole, weights = run("whole", save_every=64)
        checkpoints = tmp_path / "whole" / "training" / "checkpoints"
        shutil.rmtree(checkpoints / "000000000128")
        (tmp_path / "whole" / "model.safetensors").unlink()
        resumed, same_weights = run("whole", resume=True, save_every=64)
        assert resumed["unreadable_pictures"] == whole["unreadable_pictures"] == 1
        assert weights == same_weights
        shutil.rmtree(checkpoints / "000000000128")
        (tmp_path / "whole" / "model.safetensors").unlink()
        for name in BROKEN[1:]:  # mended: the number is what the run has met from its start
            shutil.copy(picture_folder / name, tmp_path / "pictures" / name)
        assert run("whole", resume=True, save_every=64)[0]["unreadable_pictures"] == 1

    def test_refuse_names_the_file_in_one_line(self, spoil, tiny_tokenizer_recipe, tmp_path, monkeypatch):
        monkeypatch.setattr("wvq.data.dataset.probe", lambda dataset: None)
        recipe = tiny_tokenizer_recipe(tmp_path / "out", train={"images": 128, "num_workers": 1})
        recipe.data.path, recipe.data.unreadable = str(spoil(*BROKEN)), "refuse"
        with pytest.raises(DataError, match=r"^\S+\.png cannot be read as a picture") as caught:
            train_tokenizer(recipe)
        assert "\n" not in str(caught.value)
