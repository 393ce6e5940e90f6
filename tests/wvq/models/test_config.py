"""StrictConfig: declared fields and their ranges, unknown keys, the identity, and files of the version before."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from wvq.checks import FLAG, NAMES, at_most, integer, one_of, or_null
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.models.config import StrictConfig, option, read_config
from wvq.tokenizer.configuration import WassersteinVQConfig

SAVED = Path(__file__).parents[2] / "former" / "saved"


class SmallConfig(StrictConfig):
    model_type = "small_test_config"

    width: int = option(3, integer(), at_most(1_000))
    depth: int = option(None, or_null(integer()))
    kind: str = option("plain", one_of(("plain", "odd")), identity=False)
    names: list[str] = option([], NAMES)
    flag: bool = option(False, FLAG, of_method=True)

    def complete(self, check):
        super().complete(check)
        if self.depth is None:
            self.depth = 2 * self.width
        check("depth", "a multiple of width", lambda depth: depth % self.width == 0)


def test_fields_are_those_of_the_model_in_their_order():
    assert SmallConfig.fields() == ["width", "depth", "kind", "names", "flag"]
    assert SmallConfig.fields_outside_identity() == ["kind"]
    assert SmallConfig.fields_of_method() == ["flag"]


def test_unknown_fields_are_refused_with_the_near_match():
    with pytest.raises(ConfigError, match=r'SmallConfig has no field "widht" \(did you mean "width"\?\)'):
        SmallConfig(widht=4)


def test_fields_of_the_library_are_accepted():
    config = SmallConfig(width=4, architectures=["SmallModel"], dtype="float32", _name_or_path="x")
    assert config.width == 4


def test_a_saved_config_comes_back(tmp_path):
    SmallConfig(width=5, names=("a", "b"), averaging_decay=0.5).save_pretrained(tmp_path)
    for again in (read_config(SmallConfig, tmp_path), SmallConfig.from_pretrained(tmp_path)):
        assert (again.width, again.depth, again.names, again.averaging_decay) == (5, 10, ["a", "b"], 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": "3"}, "width must be an integer of at least 1, got '3'"),
        ({"width": 1_001}, "width must be at most 1,000, got 1001"),
        ({"depth": 0}, "depth must be an integer of at least 1, or null, got 0"),
        ({"depth": 4}, "depth must be a multiple of width, got 4"),
        ({"kind": "od"}, "kind must be one of plain, odd, got 'od'"),
        ({"kind": ["odd"]}, r"kind must be one of plain, odd, got \['odd'\]"),
        ({"names": "ab"}, "names must be a list of names, got 'ab'"),
        ({"names": [None]}, r"names must be a list of names, got \[None\]"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"averaging_decay": 1}, r"averaging_decay must be in \[0, 1\), or null, got 1"),
    ],
)
def test_a_value_out_of_range_is_one_line_with_field_and_range(fields, message):
    with pytest.raises(ConfigError, match=f"^SmallConfig.{message}$"):
        SmallConfig(**fields)


def test_lists_are_of_each_config_alone():
    given = ["a"]
    config, other = SmallConfig(names=given), SmallConfig()
    config.names.append("b")
    other.names.append("c")
    assert given == ["a"]
    assert SmallConfig().names == []


def test_the_identity_is_what_differs_from_the_defaults_and_counts():
    assert SmallConfig().identity() == {}
    assert SmallConfig(averaging_decay=0.9, kind="odd").identity() == {}
    assert SmallConfig(width=4, flag=True).identity() == {"depth": 8, "flag": True, "width": 4}


@pytest.mark.parametrize(
    ("folder", "config_class"),
    [
        ("tokenizer", WassersteinVQConfig),
        ("pipeline/tokenizer", WassersteinVQConfig),
        ("pipeline/generator", ImageCodeTransformerConfig),
    ],
)
def test_a_config_of_the_version_before_is_saved_as_it_was(folder, config_class):
    """Fields that have come since are beside its own, at their defaults, which are what there was before them."""
    written = json.loads((SAVED / folder / "config.json").read_text())
    again = json.loads(read_config(config_class, SAVED / folder).to_json_string())
    for values in (written, again):
        del values["transformers_version"]
    assert again == written


# ---- files


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, CheckpointError, "config.json is missing: .* holds no small_test_config"),
        ("{", CheckpointError, "cannot be read as JSON"),
        ("\x00\xff", CheckpointError, "cannot be read as JSON"),
        ("3", CheckpointError, "must hold a JSON object"),
        ("{}", CheckpointError, 'type "None", not "small_test_config"'),
        ('{"model_type": "small_test_config", "widt": 3}', ConfigError, 'no field "widt"'),
        ('{"model_type": "small_test_config", "width": "3"}', ConfigError, "width must be an integer"),
    ],
)
def test_a_bad_config_file_is_one_clear_error(tmp_path, text, error, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(error, match=message) as raised:
        read_config(SmallConfig, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.fixture
def saved(tmp_path):
    SmallConfig(width=5).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_fields_are_changed_by_name_and_checked(saved):
    config = SmallConfig.from_pretrained(saved, depth=20, averaging_decay=0.5, revision="main", token=None)
    assert (config.width, config.depth, config.averaging_decay) == (5, 20, 0.5)
    assert SmallConfig.from_pretrained(saved.parent, subfolder="model").width == 5
    with pytest.raises(ConfigError, match=r"SmallConfig.depth must be an integer of at least 1, or null, got 'x'"):
        SmallConfig.from_pretrained(saved, depth="x")
    with pytest.raises(ConfigError, match=r'SmallConfig.from_pretrained takes no "dpth" \(did you mean "depth"\?\)'):
        SmallConfig.from_pretrained(saved, dpth=3)
    with pytest.raises(ConfigError, match="trust_remote_code=True is not possible here"):
        SmallConfig.from_pretrained(saved, trust_remote_code=True)


def test_auto_config_checks_the_fields_too():
    folder = SAVED / "tokenizer"
    assert AutoConfig.from_pretrained(folder, dropout=0.25).dropout == 0.25
    with pytest.raises(ConfigError, match="dropout must be in"):
        AutoConfig.from_pretrained(folder, dropout=3)


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    config = SmallConfig(width=np.int64(4), depth=torch.tensor(8))
    assert (type(config.width), type(config.depth)) == (int, int)
    config.save_pretrained(tmp_path)
    assert SmallConfig.from_pretrained(tmp_path).depth == 8
    with pytest.raises(ConfigError, match="width must be an integer"):
        SmallConfig(width=np.float32(4.5))
