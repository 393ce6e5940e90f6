"""Generators of ours written as LlamaGen's files hold theirs, for programs that run those."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from wvq.errors import CheckpointError, ConfigError
from wvq.files.atomic import whole_file
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.published import llamagen
from wvq.models.key_map import write_weights

# Values of fields that LlamaGen's network has built in; those of texts where it takes texts.
_BUILT_IN = {"target_positions": False, "qk_norm": False, "condition_bias": False, "prefix_rotary": "erased"}
_BUILT_IN_TEXT = {"text_projection": "mlp", "null_text": "features"}
_MULTIPLES = (256, 64)  # LlamaGen rounds widths of feed-forward layers up to multiples of the first


def write_llamagen(generator: CodeGenerator, out: str | Path) -> dict[str, int | float | str]:
    """Write a generator as LlamaGen's files hold theirs: the same logits, to rounding.

    An output layer that is tied is written out; code vectors that the model sees are added into the embedding and the
    output layer.

    Args:
        generator: an ImageCodeTransformer that was trained with ``prefix_rotary: erased``.
        out: file that ends in ``.pt``, which then holds the weights under "model", or in ``.safetensors``.

    Returns:
        The fields of LlamaGen's ``ModelArgs`` that its ``Transformer`` is made with to take the weights.

    Raises:
        ConfigError: LlamaGen's network cannot be this generator, with the reason; or another kind of file.
        CheckpointError: the file cannot be written.
    """
    out = Path(out)
    if out.suffix not in (".pt", ".safetensors"):
        raise ConfigError(f"out must end in .pt or .safetensors, got {out}")
    weights = llamagen_weights(generator)
    try:
        with whole_file(out) as partial:
            if out.suffix == ".pt":
                torch.save({"model": weights}, partial)
            else:
                save_file(weights, partial, metadata={"format": "pt"})
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be written ({error.strerror or error}); make room there, or choose another place"
        ) from error
    return llamagen_sizes(_expressible(generator).config)


def llamagen_weights(generator: CodeGenerator) -> dict[str, torch.Tensor]:
    """The weights of a generator by LlamaGen's names; see :func:`write_llamagen`."""
    model = _expressible(generator)
    config, weights = model.config, {name: value.detach() for name, value in model.state_dict().items()}
    embedding = weights["code_embedding.weight"]
    head = weights.setdefault("head.weight", embedding.clone())
    if config.code_dim:
        vectors = model.codebook.double()
        inputs = embedding.double() + vectors @ model.vector_in.weight.double().T
        outputs = head.double() + vectors @ model.vector_out.weight.double()
        weights |= {"code_embedding.weight": inputs.type_as(embedding), "head.weight": outputs.type_as(head)}
    return {name: value.cpu() for name, value in write_weights(weights, llamagen.entries(config)).items()}


def llamagen_sizes(config: ImageCodeTransformerConfig) -> dict[str, int | float | str]:
    """The fields of LlamaGen's ``ModelArgs`` of a generator that its network can be."""
    sizes: dict[str, int | float | str] = {
        "dim": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_kv_head": config.num_kv_heads,
        **_feed_forward(config),
        "rope_base": config.rope_theta,
        "norm_eps": config.norm_eps,
        "vocab_size": config.num_codes,
        "block_size": config.sequence_length,
        "cls_token_num": config.prefix_length,
    }
    if config.text_dim:
        return {**sizes, "model_type": "t2i", "caption_dim": config.text_dim}
    return {**sizes, "model_type": "c2i", "num_classes": config.num_classes}


def _feed_forward(config: ImageCodeTransformerConfig) -> dict[str, int | float]:
    """What gives LlamaGen's feed-forward layers their width: 8/3 of D by a factor, then rounded up to a multiple."""
    usual, width = 8 * config.hidden_size // 3, config.intermediate_size
    for multiple in _MULTIPLES:
        if -(-usual // multiple) * multiple == width:
            return {"multiple_of": multiple}
    if width >= usual:
        return {"multiple_of": width}
    return {"multiple_of": width, "ffn_dim_multiplier": width / usual}


def _expressible(generator: CodeGenerator) -> ImageCodeTransformer:
    """The generator, if LlamaGen's network can be it.

    Raises:
        ConfigError: it cannot, with the reason.
    """
    if not isinstance(generator, ImageCodeTransformer):
        raise ConfigError(f"a {type(generator).__name__} cannot be written as LlamaGen's: it draws one code a position")
    if generator.reduced is not None:
        raise ConfigError(f"the generator's weights are {generator.reduced}; load it without weights to write them")
    config = generator.config
    for name, value in {**_BUILT_IN, **(_BUILT_IN_TEXT if config.text_dim else {})}.items():
        if getattr(config, name) != value:
            raise ConfigError(f"this generator has {name} {getattr(config, name)!r}, and LlamaGen's network {value!r}")
    if config.num_classes and config.text_dim:
        raise ConfigError("this generator takes classes and texts, and LlamaGen's network one of them")
    if config.grid[0] != config.grid[1]:
        raise ConfigError(f"this generator draws a grid of {config.grid}, and LlamaGen's network a square one")
    return generator
