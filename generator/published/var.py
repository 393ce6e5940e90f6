"""VAR's generator (Tian et al. 2024, arXiv 2404.02905) as a NextScaleTransformer: names and forms of its weights.

What its quantizer adds to the input of each scale is the tokenizer's, which is taken with it.
Shapes: D width, H heads, T codes over all scales.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch

from wvq.errors import CheckpointError
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.generator.next_scale.modeling import NextScaleTransformer
from wvq.generator.published.reading import Shapes, Tokenizer, TokenizerSizes
from wvq.models.key_map import Entry, fill, reshaped, same, with_suffixes
from wvq.models.published import PublishedOptions

HEAD_DIM = 64  # of all published sizes, d16 to d36: as many heads as layers, of this width
# Tables that the model computes, and a bias of keys that is always 0.
DROPPED = ("lvl_1L", "attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias")
# Queries and keys that are not normalised are multiplied by .25 / sqrt(C), where ours are by 1 / sqrt(C).
_QUERY_SCALE = 0.25
_HEAD_SCALES = "blocks.0.attn.scale_mul_1H11"


def read(
    state: MutableMapping[str, torch.Tensor], source: str, options: PublishedOptions, tokenizer: Tokenizer | None
) -> NextScaleTransformer:
    """The generator of a file; arguments as of :func:`wvq.generator.published.registry.read_generator`.

    Raises:
        CheckpointError: no tokenizer is given, or the file is of another model.
    """
    if tokenizer is None:
        raise CheckpointError(f"{source}: a generator of VAR reads the codebook of its tokenizer; give that too")
    config = config_of(Shapes(state, source, "VAR"), options, tokenizer.config)
    with torch.device("meta"):
        model = NextScaleTransformer(config)
    fill(model, state, entries(config), DROPPED, source)
    model.take_quantizer(tokenizer.quantizer.code_tensors(torch.device("cpu")))
    return model.eval()


def config_of(shapes: Shapes, options: PublishedOptions, tokenizer: TokenizerSizes) -> NextScaleTransformerConfig:
    """The config that the shapes of the weights, the tokenizer and the options give.

    Raises:
        CheckpointError: a weight that it is made from is missing, nothing says how many heads there are, or the scales
            of the tokenizer are not those of the generator.
        ConfigError: sizes that do not fit each other.
    """
    num_codes, width = shapes.of("head.weight")
    scales = tokenizer.scales or []
    length, levels = shapes.of("pos_1LC", 3)[1], shapes.of("lvl_embed.weight")[0]
    if (sum(side**2 for side in scales), len(scales)) != (length, levels):
        raise CheckpointError(
            f"{shapes.source} draws {length:,} codes of {levels} scales, and its tokenizer has {scales}; give those of "
            "its training by --scales, or the --image_size of its tokenizer"
        )
    layers, normed = shapes.layers("blocks"), _HEAD_SCALES in shapes.state
    heads = options.num_heads or _heads(shapes, width, layers)
    return NextScaleTransformerConfig(
        **NextScaleTransformerConfig.fields_of_tokenizer(tokenizer),
        num_codes=num_codes,
        grid=list(tokenizer.grid),
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=shapes.of("blocks.0.ffn.fc1.weight")[0],
        num_classes=shapes.of("class_emb.weight")[0] - 1,
        conditioning="adaptive_shared" if "shared_ada_lin.1.weight" in shapes.state else "adaptive",
        norm="layer",
        norm_eps=1e-6,
        feed_forward="gelu",
        qk_norm="l2" if normed else "none",
        attention_bias=True,
        dropout=0.0,
        token_dropout=0.0,
        drop_path=min(0.1 * layers / 24, 0.5),  # as VAR trains
    )


def _heads(shapes: Shapes, width: int, layers: int) -> int:
    if _HEAD_SCALES in shapes.state:
        return shapes.of(_HEAD_SCALES, 4)[1]
    if width == HEAD_DIM * layers:
        return layers
    raise CheckpointError(f"{shapes.source}: its weights do not show the number of heads; give --num_heads")


def entries(config: NextScaleTransformerConfig) -> list[Entry]:
    """The map of the weights."""
    width = config.hidden_size
    layers = [
        lambda word: same(f"input_projection.{word}", f"word_embed.{word}"),
        lambda word: same(f"norm_modulation.{word}", f"head_nm.ada_lin.1.{word}"),
    ]
    if config.conditioning == "adaptive_shared":
        layers.append(lambda word: same(f"shared_modulation.{word}", f"shared_ada_lin.1.{word}"))
    return [
        same("condition.class_embedding.weight", "class_emb.weight"),
        reshaped("start", "pos_start", (-1, width), (1, -1, width)),
        reshaped("position", "pos_1LC", (-1, width), (1, -1, width)),
        same("level_embedding.weight", "lvl_embed.weight"),
        *with_suffixes(layers),
        *(entry for layer in range(config.num_layers) for entry in _layer(layer, config)),
        same("head.weight", "head.weight"),
        same("head_bias", "head.bias"),
    ]


def _layer(layer: int, config: NextScaleTransformerConfig) -> list[Entry]:
    block, width = f"blocks.{layer}", config.hidden_size
    found = [
        same(f"{block}.attention.value_bias", f"{block}.attn.v_bias"),
        same(f"{block}.attention.out.weight", f"{block}.attn.proj.weight"),
        same(f"{block}.attention.out_bias", f"{block}.attn.proj.bias"),
        same(f"{block}.feed_forward.up.weight", f"{block}.ffn.fc1.weight"),
        same(f"{block}.feed_forward.up_bias", f"{block}.ffn.fc1.bias"),
        same(f"{block}.feed_forward.down.weight", f"{block}.ffn.fc2.weight"),
        same(f"{block}.feed_forward.down_bias", f"{block}.ffn.fc2.bias"),
    ]
    products = (f"{block}.attention.qkv.weight", f"{block}.attn.mat_qkv.weight")
    biases = (f"{block}.attention.query_bias", f"{block}.attn.q_bias")
    if config.qk_norm == "l2":
        scale = f"{block}.attn.scale_mul_1H11"
        found += [same(*products), same(*biases)]
        found.append(reshaped(f"{block}.attention.log_scale", scale, (-1, 1, 1), (1, -1, 1, 1)))
    else:
        found += [_scaled(*products, width), _scaled(*biases, width)]
    if config.conditioning == "adaptive_shared":
        offset = (f"{block}.modulation_offset", f"{block}.ada_gss")
        return [*found, reshaped(*offset, (-1, width), (1, 1, -1, width))]
    return [*found, *with_suffixes([lambda word: same(f"{block}.modulation.{word}", f"{block}.ada_lin.1.{word}")])]


def _scaled(ours: str, theirs: str, rows: int) -> Entry:
    """A weight whose first rows, those of queries, have the smaller scale of VAR in ours: a power of two, so exact."""

    def times(weight: torch.Tensor, factor: float) -> torch.Tensor:
        return torch.cat((weight[:rows] * factor, weight[rows:]))

    return Entry(
        ours,
        (theirs,),
        lambda parts: times(parts[0], _QUERY_SCALE),
        lambda weight: (times(weight, 1 / _QUERY_SCALE),),
    )
