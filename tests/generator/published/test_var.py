"""VAR's generators: logits and greedy codes of its own classes, all published sizes by shape, bad files."""

from types import SimpleNamespace

import pytest
import torch

from tests.generator.published.shapes import random_weights, var_shapes, without_memory
from tests.peers import peer
from wvq.errors import CheckpointError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.published import var
from wvq.generator.published.registry import read_generator
from wvq.generator.sampling import sample_codes
from wvq.models.key_map import write_weights
from wvq.models.published import PublishedOptions
from wvq.models.scale_maps import shared_convs

PEERS = ("var_transformer", "var_transformer_shared_aln")
SCALES_256 = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
SCALES_512 = [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]
PUBLISHED = {depth: (SCALES_512 if depth == 36 else SCALES_256) for depth in (16, 20, 24, 30, 36)}
NONE = PublishedOptions()
# Of other sizes than the peers' models.
OTHER = {
    "a layer each": {"width": 96, "layers": 1, "heads": 3},
    "one layer for all": {"width": 64, "layers": 2, "heads": 2, "shared": True},
    "not normalised": {"width": 64, "layers": 1, "heads": 4, "normed": False},
}


def tokenizer(scales: list[int], code_dim: int, tensors: dict[str, torch.Tensor] | None = None) -> SimpleNamespace:
    """What a generator needs of the tokenizer whose codes it draws; one with random vectors unless they are given."""
    convs = len(set(shared_convs(len(scales), 4)))
    draw = torch.Generator().manual_seed(1)
    made = {"codebook": torch.randn(40, code_dim, generator=draw), "conv_bias": torch.randn(convs, code_dim)}
    made["conv_weight"] = torch.randn(convs, code_dim, code_dim, 3, 3, generator=draw)
    config = SimpleNamespace(grid=(scales[-1], scales[-1]), scales=scales, code_dim=code_dim, num_scale_convs=4)
    config.scale_conv_ratio, config.scale_conv_table = 0.5, "var"
    quantizer = SimpleNamespace(code_tensors=lambda device: tensors or made)
    return SimpleNamespace(config=config, quantizer=quantizer, codes_hash=lambda: "hash")


def of_peer() -> SimpleNamespace:
    """The tokenizer of the peers' generators, as its own weights say."""
    weights = peer("var_vqvae").weights
    convs = [f"quantize.quant_resi.qresi_ls.{number}" for number in sorted(set(shared_convs(3, 4)))]
    tensors = {"codebook": weights["quantize.embedding.weight"]}
    tensors |= {
        f"conv_{kind}": torch.stack([weights[f"{conv}.{kind}"] for conv in convs]) for kind in ("weight", "bias")
    }
    return tokenizer([1, 2, 4], 8, tensors)


@pytest.mark.parametrize("name", PEERS)
def test_logits_are_theirs(name):
    theirs = peer(name)
    model = read_generator("var", dict(theirs.weights), "file.pth", NONE, of_peer())
    labels = theirs.io["class_labels"]
    labels = labels.masked_fill(labels == theirs.facts["num_classes"], -1)
    with torch.no_grad():
        found = model(theirs.io["codes"], labels).logits
    expected = theirs.io["logits"]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", PEERS)
def test_greedy_codes_are_theirs(name):
    """Their guidance (1 + t) c - t u with t = 1.5 i / (S - 1) is ours of scale 2.5 that rises linearly."""
    theirs = peer(name)
    model = read_generator("var", dict(theirs.weights), "file.pth", NONE, of_peer())
    settings = SamplingSettings(guidance_scale=2.5, guidance_schedule="linear", temperature=0.0)
    found = sample_codes(model, Condition(theirs.io["class_labels"]), [0, 1], settings)
    assert torch.equal(found, theirs.io["greedy_codes_cfg_1_5"])


@pytest.mark.parametrize("name", PEERS)
def test_their_weights_are_written_back(name):
    weights = peer(name).weights
    model = read_generator("var", dict(weights), "file.pth", NONE, of_peer())
    assert_written_back(model, weights)


def assert_written_back(model, weights: dict[str, torch.Tensor]) -> None:
    back = write_weights(model.state_dict(), var.entries(model.config))
    tables = {name for name in weights if name.endswith("zero_k_bias")} | {"lvl_1L", "attn_bias_for_masking"}
    assert back.keys() == weights.keys() - tables
    assert all(torch.equal(value, weights[key]) for key, value in back.items())


@pytest.mark.parametrize("sizes", OTHER.values(), ids=OTHER)
def test_models_of_other_sizes_are_read_and_written_back(sizes):
    scales, owner = [1, 2, 3, 5], tokenizer([1, 2, 3, 5], 6)
    weights = random_weights(var_shapes(**sizes, scales=scales, codes=40, code_dim=6, classes=3))
    options = PublishedOptions(num_heads=None if sizes.get("normed", True) else sizes["heads"])  # normed, shapes say it
    model = read_generator("var", dict(weights), "file.pth", options, owner)
    config = model.config
    assert (config.num_heads, config.scales, config.num_classes) == (sizes["heads"], scales, 3)
    assert config.conditioning == ("adaptive_shared" if sizes.get("shared") else "adaptive")
    assert config.tokenizer_hash == "hash"
    assert_written_back(model, weights)
    assert torch.equal(model.codebook, owner.quantizer.code_tensors(None)["codebook"])
    condition, settings = Condition(torch.tensor([0, 2])), SamplingSettings(guidance_scale=2.0, temperature=0.0)
    codes = sample_codes(model, condition, [0, 1], settings)
    with torch.no_grad():
        given, null = (model(codes, **one.named()).logits for one in (condition, condition.null()))
    assert torch.equal((null + 2.0 * (given - null)).argmax(-1), codes)


def test_queries_that_are_not_normalised_have_the_scale_of_var():
    """Attention of .25 / sqrt(C) is ours of 1 / sqrt(C) with a quarter of the queries."""
    weights = random_weights(var_shapes(64, 1, 4, [1, 2], normed=False, codes=40, code_dim=6, classes=3))
    model = read_generator("var", dict(weights), "file.pth", PublishedOptions(num_heads=4), tokenizer([1, 2], 6))
    block = "blocks.0.attn"
    x, bias = (
        torch.randn(1, 5, 64),
        torch.cat((weights[f"{block}.q_bias"], torch.zeros(64), weights[f"{block}.v_bias"])),
    )
    products = (x @ weights[f"{block}.mat_qkv.weight"].T + bias).unflatten(-1, (3, 4, 16))
    q, k, v = products.permute(2, 0, 3, 1, 4)
    mixed = ((q @ k.mT) * (0.25 / 16**0.5)).softmax(-1) @ v
    expected = mixed.transpose(1, 2).flatten(2) @ weights[f"{block}.proj.weight"].T + weights[f"{block}.proj.bias"]
    torch.testing.assert_close(model.blocks[0].attention(x, None, None), expected)


@pytest.mark.parametrize(("depth", "scales"), PUBLISHED.items())
def test_published_generators_by_shape(depth, scales, monkeypatch):
    monkeypatch.setattr("wvq.generator.next_scale.modeling.NextScaleTransformer.take_quantizer", lambda *_: None)
    shapes = var_shapes(64 * depth, depth, depth, scales, shared=depth == 36)
    config = read_generator("var", without_memory(shapes), "file.pth", NONE, tokenizer(scales, 32)).config
    assert (config.num_heads, config.head_dim, config.num_classes, config.num_codes) == (depth, 64, 1000, 4096)
    assert (config.scales, config.conditioning == "adaptive_shared") == (scales, depth == 36)
    assert config.drop_path == pytest.approx(depth / 240)


@pytest.mark.parametrize(
    ("options", "scales", "message"),
    [
        (NONE, [1, 2, 4], r"draws 14 codes of 3 scales, and its tokenizer has \[1, 2, 4\]; give those of its training"),
        (PublishedOptions(num_heads=4), [1, 2, 3], r"scale_mul_1H11 makes \(3, 1, 1\) of blocks.0.attention.log_scale"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_a_line(options, scales, message):
    weights = random_weights(var_shapes(96, 1, 3, [1, 2, 3], codes=40, code_dim=6, classes=3))
    with pytest.raises(CheckpointError, match=rf"^file\.pth.*{message}"):
        read_generator("var", weights, "file.pth", options, tokenizer(scales, 6))


def test_heads_that_nothing_shows_are_asked_for():
    weights = random_weights(var_shapes(96, 1, 3, [1, 2, 3], normed=False, codes=40, code_dim=6, classes=3))
    with pytest.raises(
        CheckpointError, match=r"file\.pth: its weights do not show the number of heads; give --num_hea"
    ):
        read_generator("var", weights, "file.pth", NONE, tokenizer([1, 2, 3], 6))


def test_a_tokenizer_is_asked_for():
    with pytest.raises(
        CheckpointError, match=r"file\.pth: a generator of VAR reads the codebook of its tokenizer; give"
    ):
        read_generator("var", {}, "file.pth", NONE)
