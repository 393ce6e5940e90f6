"""JSON and YAML from anywhere: read up to a size, and wrong in one way only."""

import json

import pytest

from wvq.app.describe import describe
from wvq.data.folders import read_folder
from wvq.data.inventory import Inventory
from wvq.data.splits import check_held_out
from wvq.errors import CheckpointError, ConfigError, DataError
from wvq.files.atomic import read_json
from wvq.files.fingerprint import DataFingerprint, PictureSketch
from wvq.files.names import RECIPE_NAME
from wvq.files.reading import MAX_JSON_BYTES, parse_json, read_yaml
from wvq.files.stage_folder import read_recipe
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.models.config import read_config
from wvq.settings.data import DataConfig
from wvq.settings.parser import recipe_file
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.training.tracking import LOG_NAME, read_log

DEEP = "[" * 100_000
HOSTILE = {"deep": (DEEP, "nested too deeply"), "digits": (f'{{"a": {"9" * 5000}}}', "a number of 5,000 digits")}
HOSTILE |= {"cut": ('{"a": ', "Expecting value"), "binary": ("\x00\x01", "Expecting value")}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json_is_one_line(kind, tmp_path):
    text, reason = HOSTILE[kind]
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"config\.json cannot be read as JSON \(.*{reason}"):
        read_json(file, DataError, "")
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON"):
        read_config(WassersteinVQConfig, tmp_path)


def test_large_json_is_not_read(tmp_path):
    file = tmp_path / "a.json"
    with file.open("wb") as opened:
        opened.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(DataError, match="larger than 32 MiB"):
        read_json(file, DataError, "")
    file.write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(DataError, match="larger than"):
        read_json(file, DataError, "", limit=100)
    assert read_json(file, DataError, "", limit=200) == {"a": "x" * 100}


def test_numbers_of_64_bits_are_read():
    assert parse_json(f"[{2**64 - 1}, {-(2**63)}, 1.5, NaN]")[:3] == [2**64 - 1, -(2**63), 1.5]


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{n}: &m{n}\n  <<: [*m{n - 1}, *m{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "its aliases stand for more than 100,000 values"),
        (MERGES, "its aliases stand for more than 100,000 values"),
        ("a: &a [*a]", "an alias of what it is part of"),
        ("a: " + DEEP[:5000], "nested too deeply"),
        ("a: " + "9" * 5000, "digits"),
        ("a: 2001-99-99", "month must be in"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: [", "while parsing"),
        ("# " + "x" * 2**20, "larger than 1 MiB"),
    ],
    ids=["aliases", "merges", "itself", "deep", "digits", "date", "python", "cut", "large"],
)
def test_hostile_recipes_are_one_line(text, reason, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    for read in (read_recipe, recipe_file):
        with pytest.raises(ConfigError, match=rf"recipe\.yaml cannot be read as YAML \(.*{reason}") as caught:
            read(file)
        assert len(str(caught.value).splitlines()) == 1


def test_aliases_as_people_use_them_are_read(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("base: &base {a: 1, b: [1, 2]}\nother:\n  <<: *base\n  c: *base\n")
    assert read_yaml(file) == {
        "base": {"a": 1, "b": [1, 2]},
        "other": {"a": 1, "b": [1, 2], "c": {"a": 1, "b": [1, 2]}},
    }
    file.write_text("")
    assert read_yaml(file) is None


NOW = DataFingerprint(PictureSketch.of(["a"]), PictureSketch.of(["b"]))


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "a: ["])
def test_a_damaged_recipe_of_a_run_is_one_line(text, tmp_path):
    (tmp_path / RECIPE_NAME).write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        check_held_out(None, NOW, tmp_path, DataConfig(path="openmoji"))


@pytest.mark.parametrize("text", ["data: [1]", "data: {path: [1]}", "out: x"])
def test_a_recipe_with_other_data_tells_nothing(text, tmp_path):
    (tmp_path / RECIPE_NAME).write_text(text)
    assert check_held_out(None, NOW, tmp_path, DataConfig(path="openmoji")) is None


def test_hostile_metadata_names_its_line(tmp_path):
    for text, reason in (HOSTILE["deep"], HOSTILE["digits"]):
        (tmp_path / "metadata.jsonl").write_text(text)
        with pytest.raises(DataError, match=f"line 1 is not JSON: {reason}"):
            read_folder(tmp_path, None, Inventory())
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "\xff"}')
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_folder(tmp_path, None, Inventory())


def test_a_line_separator_in_a_caption_ends_no_line(tmp_path, picture_folder):
    (tmp_path / "a.png").write_bytes((picture_folder / "circle" / "00.png").read_bytes())
    row = json.dumps({"file_name": "a.png", "caption": "one\u2028two\x85three"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(row + "\r\n", encoding="utf-8", newline="")
    assert read_folder(tmp_path, None, Inventory())["train"]["caption"] == ["one\u2028two\x85three"]


@pytest.mark.parametrize("line", [DEEP, "[1]", '{"images": "many"}', f'{{"images": {"9" * 5000}}}'])
def test_a_log_ends_at_the_first_row_that_is_none(line, tmp_path):
    (tmp_path / LOG_NAME).write_text('{"kind": "a", "images": 1}\n' + line + "\n")
    assert read_log(tmp_path) == [{"kind": "a", "images": 1}]


def test_a_result_of_numbers_without_end_is_none(tmp_path):
    file = tmp_path / "result.json"
    file.write_text(f'{{"kind": "generation", "metrics": {{"fid": {"9" * 400}}}}}')
    with pytest.raises(DataError, match="is no result file"):
        describe(file)


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (WassersteinVQConfig, "num_res_blocks", 10**7),
        (WassersteinVQConfig, "channel_multipliers", [1] * 10**5),
        (ImageCodeTransformerConfig, "num_layers", 10**7),
    ],
)
def test_a_config_has_as_many_layers_as_can_be(make, field, value):
    with pytest.raises(ConfigError, match=rf"{field} must be (at most|a list of at most 32)"):
        make(**{field: value})
