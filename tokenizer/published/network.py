"""The config of a published tokenizer by the shapes of its weights, and the map between these and ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from wvq.errors import CheckpointError, ConfigError
from wvq.models.key_map import Entry, same, stacked, with_suffixes
from wvq.models.published import PublishedOptions
from wvq.models.scale_maps import shared_convs
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.networks import AttentionBlock, ResBlock
from wvq.tokenizer.published.form import Sizes, TokenizerForm

# What all published networks have in common.
SHARED: Mapping[str, Any] = {
    "patch_size": 1,
    "downsample": "asymmetric",
    "feature_dim": None,
    "num_groups": 1,
    "pixel_range": "signed",
}


class Shapes:
    """The shapes of a file's weights, by their names in a form.

    Args:
        state: the weights by name.
        form: the form of the file.
        source: the file, for errors.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], form: TokenizerForm, source: str):
        self.state, self.form, self.source = state, form, source

    def __contains__(self, name: str) -> bool:
        return self.form.rename(name) in self.state

    def count(self, name: str) -> int:
        """How many weights there are of a name with the numbers from 0 on in the place of ``{}``."""
        number = 0
        while name.format(number) in self:
            number += 1
        return number

    def __call__(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of a weight of so many dims.

        Raises:
            CheckpointError: it is missing, or of another number of dims.
        """
        name = self.form.rename(name)
        if name not in self.state:
            raise CheckpointError(f"{self.source} lacks the weight {name}; the file is damaged or of another model")
        shape = tuple(self.state[name].shape)
        if len(shape) != dims or 0 in shape:
            raise CheckpointError(f"{self.source}: {name} is {shape}, not of {dims} dims; it is of another model")
        return shape


def read_config(shapes: Shapes, options: PublishedOptions) -> WassersteinVQConfig:
    """The config of a published tokenizer.

    Args:
        shapes: of its weights.
        options: what they do not say.

    Raises:
        CheckpointError: a weight is missing or of another network than ours can be.
        ConfigError: an option is missing or has no meaning for this file.
    """
    form = shapes.form
    fields = _network_fields(shapes)
    fields["num_codes"], fields["code_dim"] = shapes(form.codebook, 2)
    sizes = Sizes(**{name: fields[name] for name in Sizes._fields})
    fields["image_size"], scales = _size_and_scales(shapes, sizes, options)
    if scales is not None:
        convs = shapes.count(f"{form.scale_convs}.{{}}.weight")
        fields |= {"scales": scales, "num_scale_convs": convs, "scale_conv_table": "var"}
    if form.residual_projector is not None:
        fields["residual_projector"] = shapes(f"{form.residual_projector}.0.weight", 4)[0]
    try:
        return WassersteinVQConfig(**{**SHARED, **form.fields, **fields})
    except ConfigError as error:
        raise ConfigError(f"{shapes.source}: {error}") from error


def _size_and_scales(shapes: Shapes, sizes: Sizes, options: PublishedOptions) -> tuple[int, list[int] | None]:
    """Side of the pictures in pixels and sides of the scales, those of the published model of such sizes if not given.

    Raises:
        ConfigError: there is no such model, or scales are given to a tokenizer that has one.
    """
    form, pixels = shapes.form, 2 ** (len(sizes.channel_multipliers) - 1)  # of a code, along a side
    size, scales = options.image_size, options.scales
    if form.scale_convs is None and scales is not None:
        raise ConfigError(f"scales: the tokenizer in {shapes.source} has one scale; leave them out")
    if scales is not None:
        return size or scales[-1] * pixels, scales
    size = size or form.published.get(sizes)
    if form.scale_convs is not None:
        known = form.published_scales if sizes in form.published else {}
        if size is None or size // pixels not in known:
            raise ConfigError(f"{shapes.source} does not say the sides of its scales; give --scales, such as [1,2,4]")
        return size, list(known[size // pixels])
    if size is None:
        raise ConfigError(f"{shapes.source} does not say the size of its pictures; give --image_size, in pixels")
    return size, None


def _network_fields(shapes: Shapes) -> dict[str, Any]:
    form = shapes.form
    base, in_channels = shapes("encoder.conv_in.weight", 4)[:2]
    block = f"encoder.{form.levels[0]}.{{}}.{form.block}.{{}}.conv1.weight"
    levels = shapes.count(block.format("{}", 0))
    widths = [shapes(block.format(level, 0), 4)[0] for level in range(levels)]
    if not widths or widths[0] != base:
        first = f"{widths[0]} channels" if widths else "no blocks"
        raise CheckpointError(
            f"{shapes.source}: the first level of the encoder has {first} behind a convolution to {base}; such a "
            "network is not known here"
        )
    end, latent = shapes("encoder.conv_out.weight", 4), shapes("quant_conv.weight", 4)
    return {
        "in_channels": in_channels,
        "base_channels": base,
        "channel_multipliers": tuple(width // base if width % base == 0 else width / base for width in widths),
        "num_res_blocks": shapes.count(block.format(0, "{}")),
        "attention": _attention(shapes, levels),
        "end_kernel": end[-1],
        "latent_channels": end[0],
        "latent_kernel": latent[-1],
    }


def _attention(shapes: Shapes, levels: int) -> bool | str:
    form = shapes.form
    found = [
        [f"{form.level(part, index, levels)}.attn.0.norm.weight" in shapes for index in range(levels)]
        for part in ("encoder", "decoder")
    ]
    lowest = [False] * (levels - 1) + [True]
    middle = f"encoder.{form.middle[1]}.norm.weight" in shapes
    if found == [lowest, lowest[::-1]] and middle:
        return True
    if any(map(any, found)):
        raise CheckpointError(
            f"{shapes.source} has attention elsewhere than at the lowest level and in the middle; such a network is "
            "not known here"
        )
    return "middle" if middle else False


def entries(form: TokenizerForm, model: WassersteinVQModel) -> list[Entry]:
    """The map between the weights of a model and those of a file of some form."""
    config = model.config
    made = []
    for part in ("encoder", "decoder"):
        layers = [
            (f"{part}.{name}", layer)
            for name, layer in getattr(model, part).named_children()
            if next(layer.parameters(), None) is not None
        ]
        for (ours, layer), theirs in zip(layers, _layer_names(form, config, part), strict=True):
            made += _layer_entries(layer, ours, theirs, form.fused_qkv)
    if config.scales and form.scale_convs:
        taken = sorted(set(shared_convs(len(config.scales), config.num_scale_convs)))
        for index, conv in enumerate(taken):
            made += _alike(f"quantizer.convs.{index}", form.conv_name(conv))
    made.append(same("quantizer.book.codebook" if config.scales else "quantizer.codebook", form.codebook))
    if model.residual_projector is not None and form.residual_projector:
        for name, layer in model.residual_projector.named_children():
            if next(layer.parameters(), None) is not None:
                made += _alike(f"residual_projector.{name}", f"{form.residual_projector}.{name}")
    return [Entry(one.ours, tuple(map(form.rename, one.theirs)), one.read, one.write) for one in made]


def unused_convs(form: TokenizerForm, config: WassersteinVQConfig) -> list[str]:
    """Names in a file of the convolutions that no scale takes; a model has none of them."""
    if not config.scales:
        return []
    unused = set(range(config.num_scale_convs)) - set(shared_convs(len(config.scales), config.num_scale_convs))
    return [form.rename(f"{form.conv_name(index)}.{word}") for index in sorted(unused) for word in ("weight", "bias")]


def _layer_names(form: TokenizerForm, config: WassersteinVQConfig, part: str) -> list[str]:
    """Names of the layers of the encoder or decoder that have weights, in the order in which they run."""
    count, blocks = len(config.channel_multipliers), config.num_res_blocks
    middle = [f"{part}.{name}" for name in form.middle if config.attention or name != form.middle[1]]
    ends = [f"{part}.norm_out", f"{part}.conv_out"]
    if part == "encoder":
        levels = _level_names(form, part, count, blocks, "downsample", lowest=count - 1, attention=config.attention)
        return ["encoder.conv_in", *levels, *middle, *ends, "quant_conv"]
    levels = _level_names(form, part, count, blocks + 1, "upsample", lowest=0, attention=config.attention)
    return ["post_quant_conv", "decoder.conv_in", *middle, *levels, *ends]


def _level_names(
    form: TokenizerForm, part: str, count: int, blocks: int, resampling: str, lowest: int, attention: bool | str
) -> Iterator[str]:
    for index in range(count):
        level = form.level(part, index, count)
        for block in range(blocks):
            yield f"{level}.{form.block}.{block}"
            if index == lowest and attention is True:
                yield f"{level}.attn.{block}"
        if index < count - 1:
            yield f"{level}.{resampling}.conv"


def _layer_entries(layer: nn.Module, ours: str, theirs: str, fused_qkv: bool) -> list[Entry]:
    if isinstance(layer, ResBlock):
        parts = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
        if isinstance(layer.skip, nn.Conv2d):
            parts["skip"] = "nin_shortcut"
    elif isinstance(layer, AttentionBlock):
        parts = {"norm": "norm", "out": "proj_out"} | ({"qkv": "qkv"} if fused_qkv else {})
    else:
        return _alike(ours, theirs)
    made = [entry for own, other in parts.items() for entry in _alike(f"{ours}.{own}", f"{theirs}.{other}")]
    if isinstance(layer, AttentionBlock) and not fused_qkv:
        names = [f"{theirs}.{name}" for name in "qkv"]
        made += with_suffixes([lambda word: stacked(f"{ours}.qkv.{word}", *(f"{name}.{word}" for name in names))])
    return made


def _alike(ours: str, theirs: str) -> list[Entry]:
    return with_suffixes([lambda word: same(f"{ours}.{word}", f"{theirs}.{word}")])
