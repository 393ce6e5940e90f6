"""Exporting codes: the cache equals direct encoding, its header says how it was made, bad settings leave nothing."""

import shutil

import pytest
import torch

import wvq
from tests.tokenizer.exports import assert_nothing_left, assert_same_rows
from wvq.data import pictures
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.data.dataset import load_images
from wvq.data.pixels import to_uint8
from wvq.data.unreadable import Reading
from wvq.errors import CacheError, CheckpointError, ConfigError, DataError
from wvq.settings.parser import load_recipe
from wvq.tokenizer import export
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.picture_metrics import psnr
from wvq.tokenizer.recipes import ExportRecipe


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)


@torch.no_grad()
def encode(tokenizer, dataset, keys):
    pixels = torch.stack([dataset[key]["pixel_values"] for key in keys])
    return tokenizer.encode(pixels).codes.flatten(1)


def test_rows_equal_direct_encoding(export_recipe, tokenizer):
    settings = export_recipe()
    export_codes(settings)
    images = load_images(settings.data)
    for split, dataset in (("train", images.train), ("validation", images.validation)):
        cache = CodeDataset(settings.out, split)
        keys = range(len(dataset))
        assert len(cache) == len(dataset)
        assert torch.equal(cache.codes(keys), encode(tokenizer, dataset, keys))
        assert [cache.label(i) for i in keys] == dataset.labels
        assert [cache.caption(i) for i in keys] == dataset.captions


def test_each_crop_equals_direct_encoding(export_recipe, tokenizer):
    settings = export_recipe(num_crops=3, crop="random", min_crop_fraction=0.6, flip=True)
    export_codes(settings)
    images = load_images(settings.data)
    cache, length = CodeDataset(settings.out), len(images.train)
    assert len(cache) == length
    centre = encode(tokenizer, images.train.with_crop(crop="center", flip=False), range(length))
    assert torch.equal(cache.codes([3 * i for i in range(length)]), centre)
    versions = [centre]
    for crop in (1, 2):  # drawn as if the run had seen the whole set once a crop
        versions.append(encode(tokenizer, images.train, [(crop * length + i, i) for i in range(length)]))
        assert torch.equal(cache.codes([3 * i + crop for i in range(length)]), versions[-1])
    assert all((a != b).any() for a, b in [(versions[0], versions[1]), (versions[1], versions[2])])
    assert len(CodeDataset(settings.out, "validation").labels) == len(images.validation)


def test_ten_crops(export_recipe, tokenizer):
    settings = export_recipe(num_crops=10, crop="ten", min_crop_fraction=0.8)
    header = export_codes(settings)
    assert header.crop_recipe["train"] == "ten(0.8)"
    train, cache = load_images(settings.data).train, CodeDataset(settings.out)
    for crop in (0, 1, 4, 9):
        expected = encode(tokenizer, train, [(crop * len(train) + i, i) for i in range(len(train))])
        assert torch.equal(cache.codes([10 * i + crop for i in range(len(train))]), expected)
    with pytest.raises(ConfigError, match=r"num_crops must be 10 where data\.crop is ten, got 4"):
        export_codes(export_recipe(num_crops=4, crop="ten"))


def test_scaled_ten_crops(export_recipe, tokenizer):
    settings = export_recipe(num_crops=20, crop="ten", crop_scales=[1.5, 1.25])
    header = export_codes(settings)
    assert (header.num_crops, header.crop_recipe["train"]) == (20, "ten(x1.5, x1.25)")
    train, cache = load_images(settings.data).train, CodeDataset(settings.out)
    for crop in (0, 4, 10, 19):
        expected = encode(tokenizer, train, [(crop * len(train) + i, i) for i in range(len(train))])
        assert torch.equal(cache.codes([20 * i + crop for i in range(len(train))]), expected)
    with pytest.raises(ConfigError, match=r"num_crops must be 20 where data\.crop is ten, ten a scale, got 10"):
        export_codes(export_recipe(num_crops=10, crop="ten", crop_scales=[1.5, 1.25]))


def test_the_shipped_recipe_is_llamagens():
    shipped = load_recipe(ExportRecipe, "imagenet_256/codes", {})
    shipped.check()
    assert [int(shipped.data.image_size * scale) for scale in shipped.data.crop_scales] == [281, 268]


def test_the_batch_size_does_not_matter(export_recipe):
    one, other = (export_recipe(num_crops=2, batch_size=size, crop="random") for size in (7, 64))
    for settings in (one, other):
        export_codes(settings)
    assert_same_rows(one.out, other.out)


def test_the_header_says_how_the_cache_was_made(export_recipe, tokenizer):
    settings = export_recipe(num_crops=2, crop="random", flip=True)
    returned = export_codes(settings)
    header = CodeHeader.read(settings.out)
    assert header == returned
    assert header.tokenizer_hash == tokenizer.codes_hash()
    assert (header.num_codes, header.grid, header.image_size, header.num_crops) == (32, [4, 4], 16, 2)
    assert header.crop_recipe == {"train": "center, then random(0.8)+flip", "validation": "center"}
    assert header.class_names == ["circle", "cross", "square"]
    assert header.source == settings.data.path
    assert header.num_images == {"train": 48, "validation": 12}
    assert header.has_captions
    assert header.library_version == wvq.__version__
    assert set(header.psnr_rgb) == {"train", "validation"}


def test_the_header_of_one_crop_and_no_captions(export_recipe, picture_folder):
    settings = export_recipe(crop="random")
    settings.data.path = str(picture_folder)
    header = export_codes(settings)
    assert header.crop_recipe["train"] == "center"
    assert not header.has_captions
    assert CodeDataset(settings.out).caption(0) == ""


@torch.no_grad()
def test_the_kept_psnr_is_that_of_the_decoded_rows(export_recipe, tokenizer):
    settings = export_recipe()
    header = export_codes(settings)
    validation = load_images(settings.data).validation  # fewer pictures than are checked: all of them
    cache = CodeDataset(settings.out, "validation")
    decoded = tokenizer.decode_codes(cache.codes(range(len(cache))).view(-1, 4, 4))
    originals = torch.stack([validation[i]["pixel_values"] for i in range(len(validation))])
    expected = psnr(to_uint8(decoded), to_uint8(originals)).mean().item()
    assert header.psnr_rgb["validation"] == pytest.approx(expected, abs=1e-3)


def test_the_self_check_finds_rows_out_of_order(export_recipe, monkeypatch):
    settings, codes = export_recipe(), export._codes

    def rolled(*args):
        batch = codes(*args)
        return batch | {"codes": batch["codes"].roll(1, dims=0)}

    monkeypatch.setattr(export, "_codes", rolled)
    with pytest.raises(CacheError, match="out of order or damaged"):
        export_codes(settings)
    assert_nothing_left(settings)


@pytest.fixture
def spoilt(export_recipe, caption_folder, tmp_path):
    """A recipe like `recipe` whose folder holds some files that are no pictures."""

    def make(*names, **settings):
        made = export_recipe(**settings)
        made.data.path = str(shutil.copytree(caption_folder, tmp_path / "spoilt"))
        for name in names:
            (tmp_path / "spoilt" / name).write_bytes(b"")
        return made

    return make


def test_unreadable_pictures_have_no_rows_and_are_counted(spoilt, tokenizer):
    settings = spoilt("circle/02.png", "cross/11.png", num_crops=2, batch_size=7, crop="random", flip=True)
    train, validation = "1 of 48 .*cross/11.png .*no rows in the train", "1 of 12 .*circle/02.png .*the validation"
    with pytest.warns(UserWarning, match=train), pytest.warns(UserWarning, match=validation):
        header = export_codes(settings)
    assert header == CodeHeader.read(settings.out)
    assert header.num_images == {"train": 47, "validation": 11}
    assert header.unreadable_pictures == {"train": 1, "validation": 1}
    train = load_images(settings.data).train
    reading = Reading(train)
    list(reading)
    keys = [key for index in reading.used for key in (index, (48 + index, index))]
    views = {int: train.with_crop(crop="center", flip=False), tuple: train}
    pixels = torch.stack([views[type(key)][key]["pixel_values"] for key in keys])
    cache = CodeDataset(settings.out)
    with torch.no_grad():
        assert torch.equal(cache.codes(range(94)), tokenizer.encode(pixels).codes.flatten(1))
    assert [cache.caption(i) for i in range(47)] == [train.captions[index] for index in reading.used]


def test_one_unreadable_picture_is_refused_where_that_is_asked(spoilt):
    settings = spoilt("cross/11.png", unreadable="refuse")
    with pytest.raises(DataError, match=r"cross/11\.png cannot be read as a picture"):
        export_codes(settings)
    assert_nothing_left(settings)


def test_too_many_unreadable_pictures_are_an_error(spoilt, monkeypatch):
    settings = spoilt(*(f"circle/{i:02d}.png" for i in range(19)))
    monkeypatch.setattr("wvq.data.dataset.probe", lambda dataset: None)
    with pytest.raises(DataError, match=r"1\d of 48 pictures cannot be read: .*too many to go on without"):
        export_codes(settings)
    assert_nothing_left(settings)


def test_an_occupied_folder_is_refused_and_untouched(export_recipe, tmp_path):
    settings = export_recipe()
    settings.out = str(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="already holds files"):
        export_codes(settings)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    (tmp_path / "mine" / "notes.txt").unlink()
    export_codes(settings)  # an empty folder is no obstacle
    assert CodeHeader.read(settings.out).num_codes == 32


def test_another_image_size_than_the_tokenizers_is_one_clear_error(export_recipe):
    settings = export_recipe(image_size=32)
    with pytest.raises(DataError, match=r"data.image_size is 32, but the tokenizer in .* was trained on 16"):
        export_codes(settings)
    assert_nothing_left(settings)


def test_a_missing_tokenizer_is_one_clear_error(export_recipe, tmp_path):
    settings = export_recipe()
    settings.tokenizer = str(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no such tokenizer folder"):
        export_codes(settings)


@pytest.mark.parametrize(("field", "value"), [("num_crops", 0), ("batch_size", 0), ("num_workers", -1)])
def test_settings_out_of_range_are_errors(export_recipe, field, value):
    settings = export_recipe()
    setattr(settings, field, value)
    with pytest.raises(ConfigError, match=f"{field} must be an integer of at least {value + 1}"):
        export_codes(settings)


# ---- loader processes


@pytest.fixture
def decoded(monkeypatch):
    """How often pictures have been decoded in this process; none are kept, as of a large set."""
    times, decode = [], pictures.decode
    monkeypatch.setattr(pictures, "MEMORY_LIMIT_BYTES", 0)
    monkeypatch.setattr(pictures, "decode", lambda encoded: times.append(1) or decode(encoded))
    monkeypatch.setattr(export, "_self_check", lambda *args: 0.0)
    return lambda: len(times)


def test_a_picture_is_decoded_once_for_all_its_crops(export_recipe, decoded):
    export_codes(export_recipe())
    once = decoded()
    export_codes(export_recipe(num_crops=10, crop="ten"))
    assert decoded() == 2 * once


def test_loader_processes_decode_and_the_rows_are_the_same(export_recipe, decoded, monkeypatch):
    monkeypatch.setattr("wvq.data.dataset.probe", lambda dataset: None)
    settings = [export_recipe(num_crops=3, crop="random", batch_size=size) for size in (16, 17)]
    export_codes(settings[0])
    before = decoded()
    settings[1].num_workers = 2
    export_codes(settings[1])
    assert before >= 60
    assert decoded() == before
    assert_same_rows(*(made.out for made in settings))


def test_loader_processes_leave_out_and_refuse_as_this_one_does(spoilt, tokenizer):
    settings = spoilt("circle/02.png", "cross/11.png", num_crops=2, batch_size=7, crop="random")
    settings.num_workers, settings.data.unreadable = 2, "refuse"
    with pytest.raises(DataError, match=r"^\S+\.png cannot be read as a picture") as caught:
        export_codes(settings)
    assert "\n" not in str(caught.value)
    settings.data.unreadable = "skip"
    with pytest.warns(UserWarning, match="1 of 48"), pytest.warns(UserWarning, match="1 of 12"):
        header = export_codes(settings)
    assert header.unreadable_pictures == {"train": 1, "validation": 1}
