"""Sizes of pictures: the forms in which they are written, and the one in which they are kept."""

import numpy as np
import pytest
import yaml

from wvq.checks import require
from wvq.errors import ConfigError
from wvq.settings.data import DataConfig
from wvq.settings.parser import Parser, load_recipe
from wvq.settings.size import SIZE, height_width, size_of, size_text
from wvq.tokenizer.recipes import ExportRecipe


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (16, 16),
        ([16, 24], [16, 24]),
        ((16, 24), [16, 24]),
        ("16x24", [16, 24]),
        ("16 X 24", [16, 24]),
        ([16, 16], 16),
        ("16x16", 16),
        (1e2, 100),
        ("1e2", 100),
        ("64.0", 64),
        ("1e2x64.0", [100, 64]),
        ([16.0, np.int64(24)], [16, 24]),
    ],
)
def test_a_size_in_each_form(given, kept):
    config = DataConfig(image_size=given)
    config.check()
    assert config.image_size == config.size == require("size", given, SIZE) == kept


@pytest.mark.parametrize(
    "value",
    [
        0,
        -4,
        16.5,
        True,
        None,
        [],
        [16],
        [16, 0],
        [16, 24, 3],
        [16, "24"],
        "x",
        "16.5",
        "nan",
        "inf",
        "1e2x",
        "ax24",
        "1x2x3",
        "16x",
    ],
)
def test_what_is_no_size(value):
    config = DataConfig(image_size=value)
    with pytest.raises(ConfigError, match=r"data.image_size must be an integer of at least 1, or \[height, width\]"):
        config.check()
    with pytest.raises(ConfigError, match=r"^data\.image_size must be"):
        _ = config.size


def test_a_size_that_is_set_later():
    config = DataConfig()
    config.image_size = "16x24"
    assert config.size == [16, 24]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--data.image_size=16x24"], [16, 24]),
        (["--data.image_size", "[16, 24]"], [16, 24]),
        (["--data.image_size", "[24,24]"], 24),
        (["--data.image_size", "24"], 24),
        (["--data.image_size", "2.4e1"], 24),
        (["--data.image_size=24.0"], 24),
        ([], 32),
    ],
)
def test_sizes_on_the_command_line(words, kept):
    parser = Parser()
    parser.add_recipe(ExportRecipe)
    data = parser.build(parser.parse(words)).data
    data.check()
    assert data.image_size == kept


@pytest.mark.parametrize(("written", "kept"), [("16x24", [16, 24]), ([16, 24], [16, 24]), (24, 24), ("1e2", 100)])
def test_sizes_in_a_recipe(tmp_path, written, kept):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"data": {"image_size": written}}))
    assert load_recipe(ExportRecipe, file).data.size == kept
    assert load_recipe(ExportRecipe, file, {"data.image_size": [8, 12]}).data.size == [8, 12]


def test_height_and_width_and_texts():
    assert height_width(16) == (16, 16)
    assert height_width([16, 24]) == height_width((16, 24)) == (16, 24)
    assert size_of((5, 3, 16, 24)) == [16, 24]
    assert size_of((5, 3, 16, 16)) == 16
    assert [size_text(size) for size in (16, [16, 24])] == ["16", "16 x 24"]
