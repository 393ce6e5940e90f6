"""ImageCodeTransformerConfig: the table of sizes, ranges of the fields, unknown keys, the round trip through JSON."""

import json

import pytest
import torch

from wvq.errors import ConfigError
from wvq.generator.base.configuration import GENERATOR_SIZES
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer

# LlamaGen's own counts (arXiv 2406.06525, table 1), K = 16,384 and 1,000 classes.
PUBLISHED = {"B": 111e6, "L": 343e6, "XL": 775e6, "XXL": 1.4e9, "3B": 3.1e9}


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_have_the_published_parameter_counts(size):
    with torch.device("meta"):
        model = ImageCodeTransformer(ImageCodeTransformerConfig(size=size, num_classes=1000))
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(PUBLISHED[size], rel=0.03)


def test_every_size_has_a_head_size_that_fast_kernels_take():
    heads = {size: ImageCodeTransformerConfig(size=size).head_dim for size in GENERATOR_SIZES}
    assert set(heads.values()) <= {64, 80, 96, 128}, heads


def test_size_sets_depth_heads_and_width():
    config = ImageCodeTransformerConfig(size="XL", hidden_size=64)
    assert (config.num_layers, config.num_heads, config.hidden_size) == (36, 20, 1280)
    assert config.intermediate_size == 3456  # 8/3 of 1280, rounded up to 64


def test_unknown_size_names_the_near_match():
    with pytest.raises(ConfigError, match=r'"XXXL" is unknown \(did you mean "XXL"\?\)'):
        ImageCodeTransformerConfig(size="XXXL")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_codes", 0),
        ("num_codes", 32.5),
        ("num_codes", True),
        ("hidden_size", "64"),
        ("num_layers", 0),
        ("num_heads", 5),
        ("num_kv_heads", 5),
        ("num_kv_heads", 24),
        ("intermediate_size", -1),
        ("grid", 4),
        ("grid", [4]),
        ("grid", [4, 0]),
        ("grid", [4, 4.5]),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("token_dropout", "none"),
        ("feed_forward_dropout", 1.5),
        ("drop_path", 1),
        ("head", "big"),
        ("target_positions", "yes"),
        ("code_dim", -1),
        ("num_classes", -1),
        ("class_names", ["only one"]),
        ("qk_norm", "yes"),
        ("condition_bias", 1),
        ("class_names", "abc"),
        ("class_names", None),
        ("text_length", 5),
        ("text_padding", "both"),
        ("text_cleaning", "upper"),
        ("text_projection", "deep"),
        ("null_text", "nothing"),
        ("prefix_rotary", "turned"),
        ("rope_theta", 0),
        ("norm_eps", -1.0),
        ("initializer_range", "big"),
    ],
)
def test_value_out_of_range_names_the_field(field, value):
    with pytest.raises(ConfigError, match=rf"ImageCodeTransformerConfig\.{field} must be"):
        ImageCodeTransformerConfig(**{"num_classes": 3, field: value})


def test_head_size_must_split_into_two_axes_of_pairs():
    with pytest.raises(ConfigError, match="num_heads"):
        ImageCodeTransformerConfig(hidden_size=36, num_heads=6)


def test_text_needs_a_length():
    with pytest.raises(ConfigError, match="text_length"):
        ImageCodeTransformerConfig(text_dim=384)


def test_unknown_key_names_the_near_match():
    with pytest.raises(ConfigError, match=r'no field "num_layer" \(did you mean "num_layers"\?\)'):
        ImageCodeTransformerConfig(num_layer=3)


@pytest.mark.parametrize(
    ("conditions", "prefix"),
    [
        ({}, 1),
        ({"num_classes": 3}, 1),
        ({"text_dim": 8, "text_length": 5}, 5),
        ({"num_classes": 3, "text_dim": 8, "text_length": 5}, 6),
    ],
)
def test_prefix_holds_the_class_token_and_the_text(conditions, prefix):
    assert ImageCodeTransformerConfig(**conditions).prefix_length == prefix


def test_round_trip_keeps_every_field(tmp_path):
    config = ImageCodeTransformerConfig(
        num_codes=40, grid=(2, 3), hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, qk_norm=True,
        dropout=0.2, token_dropout=0.3, feed_forward_dropout=0.4, drop_path=0.1, head="normal", target_positions=True,
        rope_theta=100.0, norm_eps=1e-6, initializer_range=0.05, code_dim=4,
        condition_bias=True, num_classes=2, class_names=("a", "b"), text_dim=8, text_length=5, tokenizer_hash="abc",
        text_padding="right", text_encoder_hash="def", text_cleaning="lower", text_projection="mlp",
        null_text="features", prefix_rotary="erased",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    again = ImageCodeTransformerConfig.from_pretrained(tmp_path)
    fields = [name for name in vars(config) if not name.startswith("_") and name != "transformers_version"]
    assert {name: getattr(again, name) for name in fields} == {name: getattr(config, name) for name in fields}
    assert (again.grid, again.class_names, again.num_kv_heads) == ([2, 3], ["a", "b"], 2)


def test_fields_of_later_versions_are_saved_only_where_they_say_something(tmp_path):
    later = {"text_cleaning", "text_projection", "null_text", "prefix_rotary"}
    plain = ImageCodeTransformerConfig(text_dim=8, text_length=5)
    plain.save_pretrained(tmp_path)
    assert not later & json.loads((tmp_path / "config.json").read_text()).keys()
    assert not later & plain.identity().keys()
    changed = ImageCodeTransformerConfig(
        text_dim=8, text_length=5, text_cleaning="lower", text_projection="mlp", null_text="features",
        prefix_rotary="erased",
    )  # fmt: skip
    changed.save_pretrained(tmp_path)
    assert later <= json.loads((tmp_path / "config.json").read_text()).keys()
    assert later <= changed.identity().keys()


@pytest.mark.parametrize(("field", "value"), [("text_cleaning", "lower"), ("null_text", "features")])
def test_fields_of_texts_need_texts(field, value):
    with pytest.raises(ConfigError, match=rf'{field} must be "(none|token)" where text_dim is 0, got'):
        ImageCodeTransformerConfig(num_classes=3, **{field: value})


def test_a_size_survives_the_round_trip(tmp_path):
    ImageCodeTransformerConfig(size="S", num_kv_heads=2).save_pretrained(tmp_path)
    again = ImageCodeTransformerConfig.from_pretrained(tmp_path)
    assert (again.size, again.hidden_size, again.num_kv_heads, again.intermediate_size) == ("S", 384, 2, 1024)
