"""LlamaGen's generators: logits and greedy codes of its own classes, all published sizes by shape, bad files."""

from types import SimpleNamespace

import pytest
import torch

from tests.generator.published.shapes import llamagen_shapes, random_weights, without_memory
from tests.peers import Peer, peer
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.published import llamagen
from wvq.generator.published.registry import read_generator
from wvq.generator.sampling import sample_codes
from wvq.models.key_map import write_weights
from wvq.models.published import PublishedOptions

SIZES = {"B": (768, 12, 2048), "L": (1024, 24, 2816), "XL": (1280, 36, 3584), "XXL": (1536, 48, 4096)}
SIZES |= {"3B": (3200, 24, 8704)}
HEADS = {"B": 12, "L": 16, "XL": 20, "XXL": 24, "3B": 32}
PUBLISHED = [("B", 256), ("L", 256), *((size, 384) for size in SIZES)]
OPTIONS = PublishedOptions(image_size=64, num_heads=4)
# Of other sizes than the peers' models: shapes, and the options that go with them.
OTHER = {
    "heads of 100": (llamagen_shapes(200, 2, 320, codes=40, classes=3), PublishedOptions(64, 2)),
    "grouped heads": (llamagen_shapes(96, 1, 256, codes=40, classes=3, products=96 + 48), PublishedOptions(96, 4)),
    "texts": (llamagen_shapes(64, 3, 192, codes=40, text=(7, 24)), PublishedOptions(64, 8)),
}


def read(weights: dict[str, torch.Tensor], options: PublishedOptions = OPTIONS) -> ImageCodeTransformer:
    return read_generator("llamagen", dict(weights), "file.pt", options)


def greedy(model: ImageCodeTransformer, condition: Condition, count: int, scale: float) -> torch.Tensor:
    settings = SamplingSettings(guidance_scale=scale, temperature=0.0)
    return sample_codes(model, condition, list(range(count)), settings).flatten(1)


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


# ---- models made with LlamaGen's own classes


@pytest.fixture
def classes() -> Peer:
    return peer("llamagen_gpt_c2i")


@pytest.fixture
def texts() -> Peer:
    return peer("llamagen_gpt_t2i")


def test_logits_of_classes_are_theirs(classes):
    labels = classes.io["class_labels"]
    labels = labels.masked_fill(labels == classes.facts["num_classes"], -1)
    with torch.no_grad():
        assert_alike(read(classes.weights)(classes.io["codes"], labels).logits, classes.io["logits"])


@pytest.mark.parametrize("scale", [1, 2])
def test_greedy_codes_of_classes_are_theirs(scale, classes):
    expected = classes.io[f"greedy_codes_guidance_{scale}"]
    condition = Condition(classes.io["class_labels"][: len(expected)])
    assert torch.equal(greedy(read(classes.weights), condition, len(expected), scale), expected)


def test_logits_of_texts_are_theirs(texts):
    """Theirs come after each token of the prefix and each code but the last."""
    features, mask = texts.io["text_features"], texts.io["text_mask"].bool()
    with torch.no_grad():
        found = read(texts.weights)(texts.io["codes"], text_features=features, text_mask=mask).logits
    assert_alike(found, texts.io["logits"][:, -texts.facts["block_size"] :])


def test_greedy_codes_of_texts_and_the_null_text_under_their_masks_are_theirs(texts):
    condition = Condition(None, texts.io["text_features"], texts.io["text_mask"].bool())
    expected = texts.io["greedy_codes_guidance_4"]
    assert torch.equal(greedy(read(texts.weights), condition, len(expected), 4.0), expected)


@pytest.mark.parametrize("name", ["llamagen_gpt_c2i", "llamagen_gpt_t2i"])
def test_their_weights_are_written_back(name):
    weights = peer(name).weights
    model = read(weights)
    back = write_weights(model.state_dict(), llamagen.entries(model.config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in back.items())


# ---- other sizes


@pytest.mark.parametrize(("shapes", "options"), OTHER.values(), ids=OTHER)
def test_models_of_other_sizes_are_read_and_written_back(shapes, options):
    weights = random_weights(shapes)
    model = read(weights, options)
    config = model.config
    assert config.head_dim * options.num_heads == config.hidden_size
    assert config.grid == [options.image_size // 16] * 2
    assert config.num_kv_heads == (1 if shapes["layers.0.attention.wqkv.weight"][0] == 144 else options.num_heads)
    back = write_weights(model.state_dict(), llamagen.entries(config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in back.items())
    if config.text_dim:
        mask = torch.arange(7) >= torch.tensor([[0], [4]])
        condition = Condition(None, torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1)), mask)
    else:
        condition = Condition(torch.tensor([0, 2]))
    codes = greedy(model, condition, 2, 2.0)
    with torch.no_grad():
        given, null = (model(codes, **one.named()).logits for one in (condition, condition.null()))
    assert torch.equal((null + 2.0 * (given - null)).argmax(-1), codes)


def test_their_pairs_of_neighbours_turn_as_our_halves():
    """Products of turned queries and keys are the same, for their rows turned as complex numbers."""
    heads, head_dim = 2, 12
    shapes = llamagen_shapes(heads * head_dim, 1, 32, codes=8, classes=3)
    weights = random_weights(shapes)
    model = read(weights, PublishedOptions(64, heads))
    cos, sin = model.rotary_tables(torch.device("cpu"))
    turns, x = torch.complex(cos, sin), torch.randn(17, heads * head_dim)

    def turned(rows: torch.Tensor) -> torch.Tensor:  # S H C/2
        pairs = torch.view_as_complex((x @ rows.T).unflatten(1, (heads, -1, 2)).contiguous())
        return pairs * turns[:, None]

    queries, keys, _ = (turned(rows) for rows in weights["layers.0.attention.wqkv.weight"].chunk(3))
    expected = torch.einsum("shc,thc->hst", queries, keys.conj()).real
    taken = []
    attention = model.blocks[0].attention
    original = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torch.nn.functional.scaled_dot_product_attention",
            lambda q, k, v, **rest: taken.append((q, k)) or original(q, k, v, **rest),
        )
        attention(x[None], cos, sin, None, None)
    (q, k) = taken[0]
    torch.testing.assert_close((q @ k.mT)[0], expected, atol=1e-5, rtol=1e-4)


# ---- published sizes


@pytest.mark.parametrize(("size", "side"), PUBLISHED)
def test_published_generators_of_classes_by_shape(size, side):
    tokenizer = SimpleNamespace(config=SimpleNamespace(grid=(side // 16, side // 16)), codes_hash=lambda: "hash")
    table = {"freqs_cis": (1 + (side // 16) ** 2, SIZES[size][0] // HEADS[size] // 2, 2)}
    weights = without_memory(llamagen_shapes(*SIZES[size]) | table)
    model = read_generator("llamagen", weights, "file.pt", PublishedOptions(), tokenizer)
    config = model.config
    assert (config.num_heads, config.num_kv_heads, config.grid) == (HEADS[size], HEADS[size], [side // 16] * 2)
    assert (config.num_classes, config.prefix_length, config.tokenizer_hash) == (1000, 1, "hash")


@pytest.mark.parametrize("side", [256, 512])
def test_published_generators_of_texts_by_shape(side):
    weights = without_memory(llamagen_shapes(*SIZES["XL"], text=(120, 2048)))
    config = read(weights, PublishedOptions(image_size=side)).config
    assert (config.text_dim, config.text_length, config.prefix_length, config.num_classes) == (2048, 120, 120, 0)
    assert (config.sequence_length, config.text_cleaning, config.text_padding) == ((side // 16) ** 2, "lower", "right")


# ---- bad files


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {},
            PublishedOptions(64),
            r"do not show the number of heads, and no .* has 1 layers of width 64; give --num_h",
        ),
        ({}, PublishedOptions(None, 4), r"do not show how many codes a picture has; give --image_size"),
        ({"tok_embeddings.weight": None}, OPTIONS, "lacks the weight tok_embeddings.weight of 2 dims; it is damaged"),
        ({"tok_embeddings.weight": torch.zeros(3)}, OPTIONS, "lacks the weight tok_embeddings.weight of 2 dims"),
        (
            {"freqs_cis": torch.zeros(65, 8, 2)},
            OPTIONS,
            "made for 64 codes a picture, not 16; give the --image_size",
        ),
        ({"freqs_cis": torch.zeros(())}, OPTIONS, "lacks the weight freqs_cis of 3 dims"),
        ({"tok_embeddings.weight": torch.zeros(40, 0)}, OPTIONS, "lacks the weight tok_embeddings.weight of 2 dims"),
        (
            {"layers.0.attention.wqkv.weight": torch.zeros(200, 64)},
            OPTIONS,
            r"makes \(200, 64\) of blocks.0.attention.qkv",
        ),
        ({"layers.90000.norm": torch.zeros(1)}, OPTIONS, "lacks the weight layers.1.attention_norm.weight"),
        ({"layers.0.attention.wo.weight": None}, OPTIONS, "lacks the weight layers.0.attention.wo.weight"),
        ({"layers.0.attention.wo.weight": torch.zeros(64, 32)}, OPTIONS, r"makes \(64, 32\) of blocks.0.attention.out"),
        ({"norm.weight": torch.full((64,), float("nan"))}, OPTIONS, "norm.weight holds NaN or infinite values"),
        ({"layers.0.extra": torch.zeros(1)}, OPTIONS, "holds layers.0.extra, which the model has no place for"),
    ],
)
def test_bad_files_are_refused_in_a_line(changes, options, message):
    weights = random_weights(llamagen_shapes(64, 1, 192, codes=40, classes=3)) | changes
    with pytest.raises(CheckpointError, match=rf"^file\.pt.*{message}"):
        read({name: value for name, value in weights.items() if value is not None}, options)


@pytest.mark.parametrize("heads", [5, 100])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(ConfigError, match="num_heads must be a divisor of hidden_size"):
        read(random_weights(llamagen_shapes(64, 1, 192, codes=40, classes=3)), PublishedOptions(64, heads))


def test_a_file_without_layers_is_refused():
    with pytest.raises(
        CheckpointError, match=r"file\.pt holds no layers \(layers\.0\); it is damaged, or no generator of"
    ):
        read({"tok_embeddings.weight": torch.zeros(40, 64)})


def test_weights_of_half_precision_are_read_as_float32():
    weights = random_weights(llamagen_shapes(64, 1, 192, codes=40, classes=3))
    model = read({name: value.bfloat16() for name, value in weights.items()})
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.head.weight, weights["output.weight"].bfloat16().float())
    assert all(parameter.requires_grad for parameter in model.parameters())
