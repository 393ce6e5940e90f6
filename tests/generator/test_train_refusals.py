"""Training the generator: what is refused, before anything is written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wvq.errors import CacheError, CheckpointError, ConfigError
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe, ObjectiveConfig
from wvq.generator.train import train_generator
from wvq.tokenizer.modeling import WassersteinVQModel


def assert_nothing_written(settings: GeneratorRecipe) -> None:
    assert not Path(settings.out).exists()


@pytest.mark.parametrize(
    "field",
    [
        "num_codes",
        "grid",
        "num_classes",
        "class_names",
        "text_dim",
        "text_padding",
        "text_encoder_hash",
        "tokenizer_hash",
    ],
)
def test_fields_that_come_from_the_cache_are_refused(field, recipe, tokenizer):
    settings = recipe(model={field: 1})
    with pytest.raises(ConfigError, match=rf"model\.{field} comes from the code cache"):
        train_generator(settings, tokenizer)
    assert_nothing_written(settings)


def test_unknown_model_field_names_the_near_match(recipe, tokenizer):
    settings = recipe(model={"hiden_size": 32})
    with pytest.raises(ConfigError, match=r'"hiden_size" \(did you mean "hidden_size"\?\)'):
        train_generator(settings, tokenizer)
    assert_nothing_written(settings)


def test_cache_of_another_tokenizer_is_refused(recipe, tiny_tokenizer_dir):
    other = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    with torch.no_grad():
        next(other.encoder.parameters()).add_(1e-3)
    settings = recipe()
    with pytest.raises(CacheError, match="was made by another tokenizer than the one in"):
        train_generator(settings, other)
    assert_nothing_written(settings)


@pytest.mark.parametrize(("field", "value"), [("num_codes", 64), ("grid", [8, 2])])
def test_cache_that_does_not_fit_the_tokenizer_is_refused(field, value, recipe, tokenizer, tiny_codes_dir, tmp_path):
    shutil.copytree(tiny_codes_dir, tmp_path / "codes")
    header = json.loads((tmp_path / "codes" / "header.json").read_text())
    (tmp_path / "codes" / "header.json").write_text(json.dumps(header | {"layout": None, field: value}))
    settings = recipe(codes=str(tmp_path / "codes"))
    with pytest.raises(CacheError, match=rf"codes has {field} .*, but the tokenizer in .* has"):
        train_generator(settings, tokenizer)
    assert_nothing_written(settings)


def test_text_needs_captions_in_the_cache(recipe, tokenizer, tiny_codes_dir, tmp_path, text_condition):
    shutil.copytree(tiny_codes_dir, tmp_path / "codes")
    header = json.loads((tmp_path / "codes" / "header.json").read_text())
    (tmp_path / "codes" / "header.json").write_text(json.dumps(header | {"has_captions": False}))
    settings = recipe(codes=str(tmp_path / "codes"), condition=text_condition)
    with pytest.raises(ConfigError, match=r"condition\.text is on, but the code cache holds no captions"):
        train_generator(settings, tokenizer)
    assert_nothing_written(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_length": 0}, r"condition\.text_length must be an integer of at least 1"),
        ({"class_dropout": 1.0}, r"condition\.class_dropout must be in \[0, 1\)"),
        ({"text_dropout": -0.1}, r"condition\.text_dropout must be in \[0, 1\)"),
    ],
)
def test_condition_out_of_range_names_the_field(changes, message, recipe, tokenizer):
    settings = recipe(condition=replace(ConditionConfig(), **changes))
    with pytest.raises(ConfigError, match=message):
        train_generator(settings, tokenizer)
    assert_nothing_written(settings)


def test_missing_text_encoder_is_refused(recipe, tokenizer, text_condition):
    settings = recipe(condition=replace(text_condition, text_encoder="./nowhere"))
    with pytest.raises(CheckpointError, match="no such text encoder folder"):
        train_generator(settings, tokenizer)
    assert_nothing_written(settings)


def test_missing_cache_is_refused(recipe, tokenizer, tmp_path):
    settings = recipe(codes=str(tmp_path / "nowhere"))
    with pytest.raises(CacheError, match="nowhere is no code cache"):
        train_generator(settings, tokenizer)
    assert_nothing_written(settings)


def test_folder_of_another_run_is_refused(recipe, tokenizer):
    settings = recipe({"images": 16})
    train_generator(settings, tokenizer)
    with pytest.raises(ConfigError, match="already holds a run; pass --resume"):
        train_generator(settings, tokenizer)
    with pytest.raises(ConfigError, match=r"was started with another train\.learning_rate"):
        train_generator(recipe({"images": 16, "learning_rate": 1e-4}), tokenizer, resume=True)


def test_a_run_beyond_the_memory_is_refused_before_it_starts(recipe, tokenizer, monkeypatch):
    monkeypatch.setattr("wvq.memory.available_memory", lambda _: 10_000)
    with pytest.raises(
        ConfigError, match=r"^training with 8 pictures at once needs about .* raise train\.gradient_acc"
    ):
        train_generator(recipe({"images": 16, "gradient_accumulation_steps": 2}), tokenizer)


def test_resume_needs_a_run(recipe, tokenizer):
    with pytest.raises(ConfigError, match="holds no run to resume"):
        train_generator(recipe(), tokenizer, resume=True)


def test_random_order_without_target_positions_is_refused(recipe, tokenizer):
    settings = recipe(model={"target_positions": False}, objective=ObjectiveConfig(random_order=1.0))
    with pytest.raises(ConfigError, match=r"objective\.random_order needs model\.target_positions"):
        train_generator(settings, tokenizer)
    assert_nothing_written(settings)
