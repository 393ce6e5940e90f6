"""A generator keeps the fingerprint of its codes, and says where tokenizer, codes and its own earlier steps differ."""

import shutil
import warnings

import numpy as np
import pytest

from wvq.errors import ConfigError
from wvq.files.fingerprint import DataFingerprint, PictureSketch
from wvq.generator.train import train_generator
from wvq.training.checkpoints import find_checkpoints


@pytest.fixture
def codes(tmp_path, tiny_codes_dir):
    """A copy of the tiny code cache."""
    shutil.copytree(tiny_codes_dir, tmp_path / "codes")
    return tmp_path / "codes"


@pytest.fixture
def stopped(recipe, codes, tokenizer, tmp_path):
    """The recipe of a run that was stopped after its second step."""
    settings = recipe({"images": 48, "save_every": 16, "keep_checkpoints": 9}, codes=str(codes))
    train_generator(settings, tokenizer)
    out = tmp_path / "run" / "generator"
    for name in ("result.json", "model.safetensors", "wvq_checksums.json"):
        (out / name).unlink()
    shutil.rmtree(find_checkpoints(out / "training")[-1])
    return settings


def swapped(fingerprint, count):
    """The same pictures, of which ``count`` have changed sides, as if held out otherwise."""
    train, validation = fingerprint.train.ids.tolist(), fingerprint.validation.ids.tolist()
    sides = train[count:] + validation[:count], validation[count:] + train[:count]
    return DataFingerprint(*(PictureSketch(len(ids), f"{count}", np.sort(np.array(ids, np.uint64))) for ids in sides))


def test_a_generator_keeps_the_fingerprint_of_its_codes(recipe, tokenizer, tmp_path, tiny_codes_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_generator(recipe({"images": 16}), tokenizer)
    kept = DataFingerprint.read(tmp_path / "run" / "generator")
    assert kept.summary() == DataFingerprint.read(tiny_codes_dir).summary()
    assert (kept.train.count, kept.validation.count) == (48, 12)


def test_codes_of_an_earlier_version_are_not_compared(recipe, codes, tokenizer, tmp_path):
    (codes / "data_fingerprint.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_generator(recipe({"images": 16}, codes=str(codes)), tokenizer)
    assert DataFingerprint.read(tmp_path / "run" / "generator") is None


def test_a_tokenizer_of_other_pictures_is_named(recipe, codes, tokenizer):
    swapped(DataFingerprint.read(codes), 5).save(codes)
    with pytest.warns(UserWarning, match="was trained on") as caught:
        train_generator(recipe({"images": 16}, codes=str(codes)), tokenizer)
    name = recipe().tokenizer
    assert [str(warning.message) for warning in caught] == [
        f"{name} was trained on other pictures: 5 of 48 training pictures are new, 5 are gone, the same pictures held "
        "out otherwise",
        f"{name} was trained on 5 of these 12 held-out pictures in {codes}",
    ]


def test_a_run_goes_on_over_the_same_codes_without_a_word(stopped, tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_generator(stopped, tokenizer, resume=True)


def test_a_run_is_not_resumed_over_codes_that_hold_out_what_it_was_trained_on(stopped, codes, tokenizer):
    swapped(DataFingerprint.read(codes), 5).save(codes)
    mixed = (
        "generator was trained on 5 of these 12 held-out pictures and held out 5 of these 48 training pictures "
        r"\(the same pictures, held out otherwise\): restore the codes that it was started with, or start another run$"
    )
    with pytest.warns(UserWarning, match="was trained on"), pytest.raises(ConfigError, match=mixed):
        train_generator(stopped, tokenizer, resume=True)


def test_a_run_that_is_resumed_over_codes_of_other_pictures_says_so(stopped, codes, tokenizer, tmp_path):
    fingerprint = DataFingerprint.read(codes)
    ids = fingerprint.train.ids
    DataFingerprint(PictureSketch(40, "fewer", ids[:40]), fingerprint.validation).save(codes)
    with pytest.warns(UserWarning, match="generator was trained on other pictures: 0 of 40 .* are new, 8 are gone$"):
        train_generator(stopped, tokenizer, resume=True)
    kept = DataFingerprint.read(tmp_path / "run" / "generator")
    assert (kept.train.count, kept.trained_on.count) == (40, 48)
