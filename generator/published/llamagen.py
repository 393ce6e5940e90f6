"""LlamaGen's generator (Sun et al. 2024, arXiv 2406.06525) as an ImageCodeTransformer: names and forms of its weights.

Its rotary pairs are neighbours (2i, 2i + 1) where ours are halves (i, i + C/2) of a head, so rows of queries and keys
are permuted; the prefix is erased from queries and keys. Shapes: D width, H heads, H' of keys and values, C head size.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TypedDict

import torch

from wvq.errors import CheckpointError
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.published.reading import Shapes, Tokenizer
from wvq.models.key_map import Entry, fill, permuted, same, stacked
from wvq.models.published import PublishedOptions

# Heads of the published sizes by width and layers: B, L, XL, XXL and 3B.
HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1536, 48): 24, (3200, 24): 32}
DOWNSAMPLING = 16  # of the tokenizer of all published generators
# Tables and caches that the model computes; the first is (P + T, C / 2, 2), and not in every file.
_ROTARY_TABLE = "freqs_cis"
DROPPED = (_ROTARY_TABLE, "causal_mask", r"layers\.\d+\.attention\.kv_cache\.[kv]_cache")

_CLASSES = "cls_embedding.embedding_table.weight"
_TEXT, _NULL_TEXT = "cls_embedding.cap_proj.fc1.weight", "cls_embedding.uncond_embedding"


def read(
    state: MutableMapping[str, torch.Tensor], source: str, options: PublishedOptions, tokenizer: Tokenizer | None
) -> ImageCodeTransformer:
    """The generator of a file; arguments as of :func:`wvq.generator.published.registry.read_generator`."""
    config = config_of(Shapes(state, source, "LlamaGen"), options, tokenizer)
    with torch.device("meta"):
        model = ImageCodeTransformer(config)
    fill(model, state, entries(config), DROPPED, source)
    return model.eval()


def config_of(shapes: Shapes, options: PublishedOptions, tokenizer: Tokenizer | None) -> ImageCodeTransformerConfig:
    """The config that the shapes of the weights, a table and the options give.

    Raises:
        CheckpointError: a weight that it is made from is missing, nothing says how many heads or codes there are, or
            the tokenizer makes another number of codes.
        ConfigError: sizes that do not fit each other.
    """
    num_codes, width = shapes.of("tok_embeddings.weight")
    layers = shapes.layers("layers")
    heads = options.num_heads or HEADS.get((width, layers))
    if heads is None:
        raise CheckpointError(
            f"{shapes.source}: its weights do not show the number of heads, and no published generator has {layers} "
            f"layers of width {width}; give --num_heads"
        )
    products, _ = shapes.of("layers.0.attention.wqkv.weight")
    config = ImageCodeTransformerConfig(
        num_codes=num_codes,
        grid=_grid(shapes.source, options, tokenizer),
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=(products * heads // width - heads) // 2,
        intermediate_size=shapes.of("layers.0.feed_forward.w1.weight")[0],
        head="normal",
        prefix_rotary="erased",
        **_conditions(shapes),
    )
    prefix, length = config.prefix_length, config.sequence_length
    if _ROTARY_TABLE in shapes.state and (rows := shapes.of(_ROTARY_TABLE, 3)[0]) != prefix + length:
        raise CheckpointError(
            f"{shapes.source} was made for {rows - prefix:,} codes a picture, not {length:,}; give the "
            "--image_size of its training"
        )
    return config


def _grid(source: str, options: PublishedOptions, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is not None:
        return list(tokenizer.config.grid)
    if options.image_size is None:
        raise CheckpointError(f"{source}: its weights do not show how many codes a picture has; give --image_size")
    return [options.image_size // DOWNSAMPLING] * 2


class _Conditions(TypedDict, total=False):
    num_classes: int
    text_dim: int
    text_length: int
    text_projection: str
    null_text: str
    text_padding: str
    text_cleaning: str


def _conditions(shapes: Shapes) -> _Conditions:
    if _TEXT not in shapes.state:
        return {"num_classes": shapes.of(_CLASSES)[0] - 1}
    length, dim = shapes.of(_NULL_TEXT)
    return {
        "text_dim": dim,
        "text_length": length,
        "text_projection": "mlp",
        "null_text": "features",
        "text_padding": "right",
        "text_cleaning": "lower",
    }


def entries(config: ImageCodeTransformerConfig) -> list[Entry]:
    """The map of the weights."""
    rows = _rows_by_halves(config.num_heads, config.num_kv_heads, config.head_dim)
    conditions = [same("condition.class_embedding.weight", _CLASSES)]
    if config.text_dim:
        conditions = [
            same("condition.text_projection.up.weight", _TEXT),
            same("condition.text_projection.out.weight", "cls_embedding.cap_proj.fc2.weight"),
            same("condition.null_text", _NULL_TEXT),
        ]
    blocks = [entry for layer in range(config.num_layers) for entry in _layer(layer, rows)]
    return [
        *conditions,
        same("code_embedding.weight", "tok_embeddings.weight"),
        *blocks,
        same("norm.weight", "norm.weight"),
        same("head.weight", "output.weight"),
    ]


def _layer(layer: int, rows: torch.Tensor) -> list[Entry]:
    ours, theirs = f"blocks.{layer}", f"layers.{layer}"
    gate, up = (f"{theirs}.feed_forward.{name}.weight" for name in ("w1", "w3"))
    return [
        same(f"{ours}.attention_norm.weight", f"{theirs}.attention_norm.weight"),
        permuted(f"{ours}.attention.qkv.weight", f"{theirs}.attention.wqkv.weight", rows),
        same(f"{ours}.attention.out.weight", f"{theirs}.attention.wo.weight"),
        same(f"{ours}.feed_forward_norm.weight", f"{theirs}.ffn_norm.weight"),
        stacked(f"{ours}.feed_forward.gate_up.weight", gate, up),
        same(f"{ours}.feed_forward.down.weight", f"{theirs}.feed_forward.w2.weight"),
    ]


def _rows_by_halves(heads: int, kv_heads: int, head_dim: int) -> torch.Tensor:
    """Which of their rows of queries, keys and values each of ours is: values stay as they are."""
    rows = torch.arange((heads + 2 * kv_heads) * head_dim)
    turned, values = rows.split([(heads + kv_heads) * head_dim, kv_heads * head_dim])
    return torch.cat((turned.view(-1, head_dim // 2, 2).transpose(1, 2).flatten(), values))
