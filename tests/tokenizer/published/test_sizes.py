"""The published sizes, read from shapes alone: each model's config, with the size of its pictures and its scales."""

import pytest
import torch

from wvq.models.published import PublishedOptions
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.published.registry import TOKENIZERS, read_tokenizer, write_tokenizer

F16 = [1, 1, 2, 2, 4]
LLAMAGEN = {"base_channels": 128, "latent_channels": 256, "code_dim": 8, "num_codes": 16_384, "l2_normalize": True}
TAMING = {"base_channels": 128, "latent_channels": 256, "code_dim": 256}
IBQ = {**TAMING, "num_res_blocks": 4, "similarity": "dot"}
VAR = {"base_channels": 160, "latent_channels": 32, "code_dim": 32, "latent_kernel": 3}
SCALES = {256: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], 512: [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]}
WASSERSTEIN = {**VAR, "quantizer": "wasserstein", "residual_projector": 1_024}
# Family, fields beside those that all have, image size, and millions of parameters as far as they are published.
PUBLISHED = {
    "vq_ds16": ("llamagen", LLAMAGEN, 256, 72),
    "vq_ds8": ("llamagen", {**LLAMAGEN, "channel_multipliers": [1, 2, 2, 4]}, 256, 70),
    "janus": ("janus", LLAMAGEN, 384, 72),
    **{f"taming-{codes}": ("taming", {**TAMING, "num_codes": codes}, 256, None) for codes in (1_024, 16_384)},
    **{f"ibq-{codes}": ("ibq", {**IBQ, "num_codes": codes}, 256, None) for codes in (1_024, 8_192, 16_384, 262_144)},
    "var": ("var", {**VAR, "num_codes": 4_096, "scales": SCALES[256]}, 256, 109),
    **{
        f"wasserstein-var-{codes}": (
            "wasserstein-var",
            {**WASSERSTEIN, "num_codes": codes, "scales": SCALES[256]},
            256,
            None,
        )
        for codes in (4_096, 8_192)
    },
}


def build(fields, image_size):
    common = {"quantizer": "vanilla", "channel_multipliers": F16, "downsample": "asymmetric", "end_kernel": 3}
    with torch.device("meta"):
        return WassersteinVQModel(WassersteinVQConfig(**{**common, **fields, "image_size": image_size}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_tokenizer_needs_no_option(name):
    family, fields, image_size, millions = PUBLISHED[name]
    model = build(fields, image_size)
    read = read_tokenizer(family, write_tokenizer(family, model), name, PublishedOptions())
    assert read.config.to_dict() == model.config.to_dict()
    if millions is not None:
        assert round(sum(weight.numel() for weight in read.parameters()) / 1e6) == millions


def test_every_size_in_the_table_is_one_of_these():
    tables = {family: {**forms[0].published} for family, forms in TOKENIZERS.items()}
    for family, fields, image_size, _ in PUBLISHED.values():
        read = build(fields, image_size).config
        multipliers = tuple(read.channel_multipliers)
        sizes = (
            read.base_channels,
            multipliers,
            read.num_res_blocks,
            read.latent_channels,
            read.code_dim,
            read.num_codes,
        )
        assert tables[family].pop(sizes) == image_size
    assert not any(tables.values())


@pytest.mark.parametrize("name", ["vq_ds16", "var"])
def test_pictures_of_another_size_take_the_same_weights(name):
    family, fields, image_size, _ = PUBLISHED[name]
    written = write_tokenizer(family, build(fields, image_size))
    config = read_tokenizer(family, written, name, PublishedOptions(image_size=512)).config
    assert config.grid == (32, 32)
    assert config.scales == (SCALES[512] if name == "var" else None)
