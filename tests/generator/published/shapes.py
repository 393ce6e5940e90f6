"""Names and shapes of the weights of other projects' generators, for any sizes, and random weights of these shapes."""

import torch

Shapes = dict[str, tuple[int, ...]]


def llamagen_shapes(
    width: int,
    layers: int,
    inner: int,
    *,
    products: int | None = None,
    codes: int = 16_384,
    classes: int = 1_000,
    text: tuple[int, int] | None = None,
) -> Shapes:
    """Shapes of LlamaGen's weights.

    Args:
        width, layers: sizes of the network.
        inner: width of its feed-forward layers.
        products: rows of queries, keys and values together; three times the width if None.
        codes, classes: their numbers.
        text: length and dims of features of texts, in place of classes.
    """
    shapes: Shapes = {"tok_embeddings.weight": (codes, width), "norm.weight": (width,), "output.weight": (codes, width)}
    if text is None:
        shapes["cls_embedding.embedding_table.weight"] = (classes + 1, width)
    else:
        shapes["cls_embedding.cap_proj.fc1.weight"] = (width, text[1])
        shapes["cls_embedding.cap_proj.fc2.weight"] = (width, width)
        shapes["cls_embedding.uncond_embedding"] = text
    for layer in (f"layers.{number}" for number in range(layers)):
        shapes[f"{layer}.attention.wqkv.weight"] = (products or 3 * width, width)
        shapes[f"{layer}.attention.wo.weight"] = (width, width)
        shapes[f"{layer}.feed_forward.w1.weight"] = shapes[f"{layer}.feed_forward.w3.weight"] = (inner, width)
        shapes[f"{layer}.feed_forward.w2.weight"] = (width, inner)
        shapes[f"{layer}.attention_norm.weight"] = shapes[f"{layer}.ffn_norm.weight"] = (width,)
    return shapes


def var_shapes(
    width: int,
    layers: int,
    heads: int,
    scales: list[int],
    *,
    shared: bool = False,
    normed: bool = True,
    codes: int = 4_096,
    code_dim: int = 32,
    classes: int = 1_000,
) -> Shapes:
    """Shapes of VAR's weights and tables.

    Args:
        width, layers, heads: sizes of the network.
        scales: sides of the maps.
        shared: whether one layer makes the modulations of all.
        normed: whether queries and keys are normalised.
        codes, code_dim, classes: their numbers.
    """
    length = sum(side**2 for side in scales)
    shapes: Shapes = {"lvl_1L": (1, length), "attn_bias_for_masking": (1, 1, length, length)}
    shapes |= {"pos_start": (1, 1, width), "pos_1LC": (1, length, width), "lvl_embed.weight": (len(scales), width)}
    shapes |= {"class_emb.weight": (classes + 1, width)}
    linear = {"word_embed": (width, code_dim), "head_nm.ada_lin.1": (2 * width, width), "head": (codes, width)}
    linear |= {"shared_ada_lin.1": (6 * width, width)} if shared else {}
    for block in (f"blocks.{number}" for number in range(layers)):
        shapes[f"{block}.attn.mat_qkv.weight"] = (3 * width, width)
        shapes |= {f"{block}.attn.{name}": (width,) for name in ("q_bias", "v_bias", "zero_k_bias")}
        shapes |= {f"{block}.attn.scale_mul_1H11": (1, heads, 1, 1)} if normed else {}
        shapes |= {f"{block}.ada_gss": (1, 1, 6, width)} if shared else {}
        linear |= {} if shared else {f"{block}.ada_lin.1": (6 * width, width)}
        linear |= {f"{block}.attn.proj": (width, width)}
        linear |= {f"{block}.ffn.fc1": (4 * width, width), f"{block}.ffn.fc2": (width, 4 * width)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def without_memory(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of shapes alone."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random_weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Random weights."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
