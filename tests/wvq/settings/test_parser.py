"""The parser: numbers and flags as people write them, on the command line, in files and in Python; unknown options."""

from pathlib import Path

import numpy as np
import pytest

from wvq.app.cli import COMMANDS
from wvq.errors import ConfigError
from wvq.settings.data import DataConfig
from wvq.settings.parser import Parser, as_written, load_recipe, near_option
from wvq.tokenizer.recipes import ExportRecipe, TokenizerRecipe


def parse(command, *words):
    parser = Parser()
    COMMANDS[command].add_arguments(parser)
    return parser.build(parser.parse(words))


@pytest.fixture
def in_a_file(tmp_path):
    """A function that reads a recipe from YAML lines."""

    def read(text, recipe=TokenizerRecipe):
        file = tmp_path / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        return load_recipe(recipe, file)

    return read


@pytest.mark.parametrize("written", ["[1, 10]", "['1', 10]", "['1', '10']"])
def test_names_of_classes_may_be_written_as_integers(written, in_a_file):
    assert in_a_file(f"data:\n  classes: {written}\n").data.classes == ["1", "10"]
    assert parse("train-tokenizer", f"--data.classes={written}").data.classes == ["1", "10"]
    data = DataConfig(classes=[1, "10"])
    data.check()
    assert data.classes == ["1", "10"]


def test_a_field_of_data_where_a_command_takes_only_a_path():
    with pytest.raises(ConfigError, match=r"^unknown option data\.stream: this command takes --data alone; .*stages"):
        parse("quickstart", "--data.stream", "true")


# ---- whole numbers


WHOLE = ["100000", "1e5", "1E5", "1E+5", "1.0e5", "100_000", "100000.0", "0100000"]


@pytest.mark.parametrize("written", WHOLE)
def test_a_whole_number_may_be_written_in_any_way(written, in_a_file):
    assert parse("train-tokenizer", f"--train.images={written}").train.images == 100_000
    assert parse("train-tokenizer", "--train.images", written).train.images == 100_000
    assert parse("sample", "folder", "--seed", written).seed == 100_000
    assert parse("sample", "folder", f"--top_k={written}").top_k == 100_000
    assert parse("export-codes", f"--num_workers={written}").num_workers == 100_000
    for text in (written, f"'{written}'"):
        if text != "0100000":  # octal in YAML 1.1
            assert in_a_file(f"train:\n  images: {text}\n").train.images == 100_000


@pytest.mark.parametrize(
    "written", ["1.5", "abc", "", "true", "inf", "nan", "1e-5", "1e999999999", "1,000", "1e", "_", "0x"]
)
def test_what_is_no_whole_number_is_one_line_that_names_the_field(written, in_a_file):
    with pytest.raises(ConfigError, match=r'"train\.images": expected int') as caught:
        parse("train-tokenizer", f"--train.images={written}")
    assert "\n" not in str(caught.value)
    if written not in ("true", "inf", "nan", ""):
        with pytest.raises(ConfigError, match=r'"train\.images": expected int'):
            in_a_file(f"train:\n  images: '{written}'\n")


def test_lists_of_numbers_take_the_same_forms(in_a_file):
    option = parse("train-tokenizer", "--discriminator.backbone_layers=[1, 1e1, 2.0]", "--data.crop_scales=[1,1e0]")
    assert option.discriminator.backbone_layers == [1, 10, 2]
    assert option.data.crop_scales == [1.0, 1.0]
    assert in_a_file("discriminator:\n  backbone_layers: [1, 1e1, 2.0]\n").discriminator.backbone_layers == [1, 10, 2]
    with pytest.raises(ConfigError, match=r"backbone_layers.*expected list\[int\]"):
        parse("train-tokenizer", "--discriminator.backbone_layers=[1.5]")


def test_names_that_are_numbers_stay_names():
    assert parse("sample", "folder", "--class", "10", "1e3", "010").classes == ["10", "1e3", "010"]
    assert parse("sample", "1e3", "--out=1e5").out == "1e5"


@pytest.mark.parametrize(
    ("written", "value"), [("inf", float("inf")), (".inf", float("inf")), ("1e1", 10.0), ("3", 3.0)]
)
def test_numbers_that_need_not_be_whole(written, value, in_a_file):
    assert parse("train-tokenizer", f"--train.max_minutes={written}").train.max_minutes == value
    assert in_a_file(f"train:\n  max_minutes: {written}\n").train.max_minutes == value


def test_numbers_and_paths_of_python_are_taken_as_overrides(in_a_file):
    given = {"train.images": np.int64(5), "train.batch_size": 2.0, "train.ema_decay": np.float32(0.5), "out": Path("o")}
    recipe = load_recipe(TokenizerRecipe, "openmoji_32/tokenizer", given)
    assert (recipe.train.images, recipe.train.batch_size, recipe.train.ema_decay, recipe.out) == (5, 2, 0.5, "o")
    assert [type(value) for value in (recipe.train.images, recipe.train.batch_size)] == [int, int]
    recipe.train.images = np.int32(7)
    recipe.model["num_codes"] = np.int64(32)
    recipe.check()
    assert [type(value) for value in (recipe.train.images, recipe.model["num_codes"])] == [int, int]


# ---- flags


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "yes", "Yes", "on", "1"])
def test_a_flag_is_on(word, in_a_file):
    for words in ([f"--data.flip={word}"], ["--data.flip", word], ["--data.flip"], ["--data.flip", "--out", "o"]):
        assert parse("train-tokenizer", *words).data.flip is True
    assert in_a_file(f"data:\n  flip: {word}\n").data.flip is True


@pytest.mark.parametrize("word", ["false", "False", "no", "off", "0"])
def test_a_flag_is_off(word, in_a_file):
    assert parse("train-tokenizer", "--data.flip", word).data.flip is False
    assert in_a_file(f"data:\n  flip: {word}\n").data.flip is False


@pytest.mark.parametrize("words", [["--resume", "folder"], ["folder", "--resume"], ["--resume", "on", "folder"]])
def test_a_flag_before_a_folder_does_not_take_it(words):
    values = parse("sample", *words)
    assert (values.pipeline, values.resume, values.deterministic) == ("folder", True, None)


@pytest.mark.parametrize("word", ["maybe", "2", "", "None"])
def test_what_is_no_flag_is_one_line_that_names_the_field(word):
    with pytest.raises(ConfigError, match=r'"data\.flip": expected bool'):
        parse("train-tokenizer", f"--data.flip={word}")


def test_values_of_other_types_are_left_for_the_parser_to_refuse():
    for value, kind in [(1.5, int), (True, int), ([1], int), (None, int), ({}, bool), (3, list[int]), ("a", float)]:
        assert as_written(value, kind) is value or as_written(value, kind) == value


# ---- unknown options


@pytest.mark.parametrize(
    ("command", "name", "wanted"),
    [
        ("train-tokenizer", "lr", "train.learning_rate"),
        ("train-tokenizer", "learning_rate", "train.learning_rate"),
        ("train-tokenizer", "train.lr", "train.learning_rate"),
        ("train-tokenizer", "epochs", "train.images"),
        ("train-tokenizer", "batch_size", "train.batch_size"),
        ("train-tokenizer", "output_dir", "out"),
        ("train-tokenizer", "dataset", "data.path"),
        ("train-tokenizer", "resolution", "data.image_size"),
        ("train-tokenizer", "imges", "train.images"),
        ("export-codes", "workers", "num_workers"),
        ("sample", "cfg", "guidance_scale"),
        ("sample", "num_samples", "num_images"),
        ("sample", "output", "out"),
        ("evaluate generation", "output", "out"),
        ("quickstart", "dataset", "data"),
    ],
)
def test_an_option_of_another_program_names_the_one_here(command, name, wanted):
    with pytest.raises(ConfigError) as caught:
        parse(command, *(["folder"] if command in ("sample", "evaluate generation") else []), f"--{name}", "3")
    assert str(caught.value) == f'unknown option {name} (did you mean "{wanted}"?)'


def test_an_option_without_a_near_name_gets_none():
    assert near_option("zzz", ["out", "train.images"]) == ""


def test_an_override_in_python_names_it_too():
    with pytest.raises(ConfigError, match=r'unknown option lr \(did you mean "train.learning_rate"\?\)'):
        load_recipe(TokenizerRecipe, "openmoji_32/tokenizer", {"lr": 1e-3})


# ---- paths


def test_every_path_of_a_recipe_takes_its_one_form(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = ExportRecipe(out="~/codes/", tokenizer="~/t")
    recipe.data.path = "~/pictures [v2]/"
    recipe.check()
    assert (recipe.out, recipe.tokenizer) == (f"{tmp_path}/codes", f"{tmp_path}/t")
    assert recipe.data.path == f"{tmp_path}/pictures [v2]"
