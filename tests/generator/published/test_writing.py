"""Generators written as LlamaGen's files: read again they give the same logits; what cannot be written says why."""

import os

import pytest
import torch
from safetensors.torch import load_file

from tests.generator.published.shapes import llamagen_shapes
from tests.tiny import make_generator, make_layout_pipeline
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.published.registry import read_generator
from wvq.generator.published.writing import llamagen_sizes, llamagen_weights, write_llamagen
from wvq.generator.reduced import reduce_weights
from wvq.models.published import PublishedOptions

TEXTS = {"text_dim": 8, "text_length": 5, "text_projection": "mlp", "null_text": "features"}
CLASSES = {"num_classes": 3}
MODELS = {
    "classes": CLASSES,
    "texts": TEXTS,
    "nothing": {},
    "tied": CLASSES | {"head": "tied"},
    "code vectors": CLASSES | {"code_dim": 4},
    "code vectors, tied": CLASSES | {"code_dim": 4, "head": "tied"},
    "grouped heads": CLASSES | {"num_heads": 4, "num_kv_heads": 2},
    "heads of 100": CLASSES | {"hidden_size": 200},
}


def erased(**changes) -> ImageCodeTransformer:
    return make_generator(**{"prefix_rotary": "erased", **changes})


def logits(model: ImageCodeTransformer) -> torch.Tensor:
    """Logits of random codes, half of them with and half without the condition that the model takes."""
    draw, config = torch.Generator().manual_seed(2), model.config
    codes = torch.randint(config.num_codes, (4, 16), generator=draw)
    given = {}
    if config.num_classes:
        given["class_labels"] = torch.tensor([0, 2, -1, -1])
    if config.text_dim:
        given["text_features"] = torch.randn(4, 5, config.text_dim, generator=draw)
        given["null_mask"] = torch.arange(5) >= torch.arange(4)[:, None]
        given["text_mask"] = given["null_mask"] & (torch.arange(4) < 2)[:, None]
    with torch.no_grad():
        return model(codes, **given).logits


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_what_is_written_and_read_gives_the_same_logits(changes, suffix, tmp_path):
    model, file = erased(**changes), tmp_path / f"model.{suffix}"
    sizes = write_llamagen(model, file)
    read = torch.load(file, weights_only=True)["model"] if suffix == "pt" else load_file(file)
    assert os.listdir(tmp_path) == [file.name]
    again = read_generator("llamagen", read, str(file), PublishedOptions(64, model.config.num_heads))
    expected = logits(model)
    torch.testing.assert_close(logits(again), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    assert sizes == llamagen_sizes(again.config)


def test_names_and_shapes_are_those_of_their_files():
    model = erased(**CLASSES, num_codes=40, hidden_size=32, intermediate_size=96)
    expected = llamagen_shapes(32, 2, 96, codes=40, classes=3)
    assert {name: tuple(value.shape) for name, value in llamagen_weights(model).items()} == expected


def test_the_model_itself_is_unchanged():
    model = erased(**CLASSES, code_dim=4, head="tied")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = llamagen_weights(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {value.data_ptr() for value in weights.values()} & {model.code_embedding.weight.data_ptr()}


@pytest.mark.parametrize(
    ("width", "inner", "expected"),
    [
        (768, 2048, {"multiple_of": 256}),
        (1280, 3584, {"multiple_of": 256}),
        (1280, 3456, {"multiple_of": 64}),
        (768, 3072, {"multiple_of": 3072}),
        (768, 100, {"multiple_of": 100, "ffn_dim_multiplier": 100 / 2048}),
    ],
)
def test_sizes_make_their_network_as_wide(width, inner, expected):
    sizes = llamagen_sizes(
        ImageCodeTransformerConfig(hidden_size=width, num_heads=width // 64, intermediate_size=inner, num_classes=3)
    )
    assert {name: value for name, value in sizes.items() if name in ("multiple_of", "ffn_dim_multiplier")} == expected
    theirs = int(expected.get("ffn_dim_multiplier", 1) * int(2 * 4 * width / 3))  # as LlamaGen works it out
    assert -(-theirs // expected["multiple_of"]) * expected["multiple_of"] == inner


def test_sizes_say_what_the_network_is_made_of():
    assert llamagen_sizes(erased(**TEXTS, norm_eps=1e-6, rope_theta=100.0).config) == {
        "dim": 32, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "multiple_of": 64, "rope_base": 100.0, "norm_eps": 1e-6,
        "vocab_size": 32, "block_size": 16, "cls_token_num": 5, "model_type": "t2i", "caption_dim": 8,
    }  # fmt: skip
    sizes = llamagen_sizes(erased(**CLASSES).config)
    assert (sizes["model_type"], sizes["num_classes"], sizes["cls_token_num"]) == ("c2i", 3, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_rotary": "identity"}, "has prefix_rotary 'identity', and LlamaGen's network 'erased'"),
        ({"target_positions": True}, "has target_positions True, and LlamaGen's network False"),
        ({"qk_norm": True}, "has qk_norm True"),
        ({"condition_bias": True}, "has condition_bias True"),
        (TEXTS | {"text_projection": "linear"}, "has text_projection 'linear', and LlamaGen's network 'mlp'"),
        (TEXTS | {"null_text": "token"}, "has null_text 'token'"),
        (TEXTS | CLASSES, "takes classes and texts, and LlamaGen's network one of them"),
        ({"grid": [2, 8]}, r"draws a grid of \[2, 8\], and LlamaGen's network a square one"),
    ],
)
def test_what_their_network_cannot_be_says_why(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        write_llamagen(erased(**changes), tmp_path / "model.pt")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["product", "multi-scale"])
def test_other_kinds_of_generators_are_refused(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"a \w+Transformer cannot be written as LlamaGen's: it draws one code a pos"):
        write_llamagen(make_layout_pipeline(kind).generator, tmp_path / "model.pt")


def test_reduced_weights_are_refused(tmp_path):
    model = reduce_weights(erased(), "bf16")
    with pytest.raises(ConfigError, match="the generator's weights are bf16; load it without weights to write them"):
        write_llamagen(model, tmp_path / "model.pt")


def test_other_kinds_of_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"out must end in \.pt or \.safetensors, got .*model\.bin"):
        write_llamagen(erased(), tmp_path / "model.bin")


def test_a_folder_that_cannot_be_written_is_a_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be written \(.*\); make room there, or choose"):
        write_llamagen(erased(), tmp_path / "file" / "model.pt")
