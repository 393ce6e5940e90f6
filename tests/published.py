"""Tiny models in the form of other projects' files, made by this project's own writers."""

from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from tests.tiny import TEXT_DIM
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.models import new_generator
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.generator.published import llamagen, var
from wvq.models.key_map import write_weights
from wvq.models.published import PublishedOptions
from wvq.pipelines.published.catalogue import CATALOGUE, FAMILIES, PublishedFile
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.published.registry import write_tokenizer

NUM_CLASSES = 3
SCALES = [1, 2, 4]
# Fields of a tokenizer of each family, with 16 x 16 pixels and a grid of 4 x 4.
SIDE = 16
_NETWORK = {"image_size": SIDE, "base_channels": 32, "channel_multipliers": [1, 1, 1], "num_res_blocks": 1}
_NETWORK |= {"downsample": "asymmetric", "end_kernel": 3, "latent_channels": 32, "num_codes": 32, "code_dim": 8}
_MULTISCALE = {"scales": SCALES, "num_scale_convs": 2, "latent_kernel": 3}
TOKENIZERS = {
    "llamagen": {"quantizer": "vanilla", "l2_normalize": True},
    "janus": {"quantizer": "vanilla", "l2_normalize": True},
    "taming": {"quantizer": "vanilla"},
    "ibq": {"quantizer": "vanilla", "similarity": "dot"},
    "var": {"quantizer": "vanilla", **_MULTISCALE},
    "wasserstein-var": {"quantizer": "wasserstein", "residual_projector": 32, **_MULTISCALE},
}


def published_tokenizer(family: str, **changes) -> WassersteinVQModel:
    """A random tokenizer such as a family's."""
    torch.manual_seed(5)
    model = WassersteinVQModel(WassersteinVQConfig(**_NETWORK | TOKENIZERS[family] | changes)).eval()
    with torch.no_grad():
        for parameter in model.codebook_parameters():
            parameter.normal_(0, 0.3)
    return model


def published_generator(family: str, tokenizer: WassersteinVQModel, **changes) -> CodeGenerator:
    """A random generator of a tokenizer's codes, such as a family's: of classes, or of texts where it has a width."""
    config: type[ImageCodeTransformerConfig] | type[NextScaleTransformerConfig] = ImageCodeTransformerConfig
    fields = {"num_codes": 32, "grid": [4, 4], "hidden_size": 64, "num_layers": 1, "num_heads": 2}
    if family == "llamagen":
        fields |= {"head": "normal", "prefix_rotary": "erased"}
        if "text_dim" in changes:
            fields |= {"text_projection": "mlp", "null_text": "features", "text_cleaning": "lower"}
    else:
        config = NextScaleTransformerConfig
        fields |= {"norm": "layer", "norm_eps": 1e-6, "feed_forward": "gelu", "qk_norm": "l2", "attention_bias": True}
        fields |= config.fields_of_tokenizer(tokenizer.config)
    if "text_dim" not in changes:
        fields["num_classes"] = NUM_CLASSES
    torch.manual_seed(6)
    model = new_generator(config(**fields | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing starts at zero: each part counts
            parameter.add_(torch.randn_like(parameter) * 0.2)
    if family == "var":
        model.take_quantizer(tokenizer.quantizer.code_tensors(torch.device("cpu")))
    return model


def write_published(
    folder: Path, family: str, tokenizer_name: str = "tokenizer.pt", generator_name: str | None = None, **changes
) -> WassersteinVQModel:
    """Write the files of a tiny model of a family; returns its tokenizer.

    Args:
        folder: of the files.
        family: whose form they have.
        tokenizer_name, generator_name: their names; no generator if None.
        changes: fields of the generator's config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = published_tokenizer(family)
    torch.save({"model": write_tokenizer(family, tokenizer)}, folder / tokenizer_name)
    if generator_name is not None:
        generator = published_generator(family, tokenizer, **changes)
        entries = {"llamagen": llamagen.entries, "var": var.entries}[family](generator.config)
        torch.save({"model": write_weights(generator.state_dict(), entries)}, folder / generator_name)
    return tokenizer


def offer_tiny_models(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """In place of the Hub, tiny files in ``folder``, and their sizes in the catalogue; returns what is asked for."""
    asked: list[str] = []

    def download(place: str, name: str, **hub_options: object) -> str:
        asked.append(f"{place}/{name}")
        model = next(model for model in CATALOGUE.values() if PublishedFile(place, name) in model.files)
        if not (folder / place / name).exists():
            texts = {"text_dim": TEXT_DIM, "text_length": 6}
            conditions = texts if model.text_encoder else {"num_classes": 1_000}
            generator = model.generator and model.generator.name
            write_published(folder / place, model.family, model.tokenizer.name, generator, **conditions)
        return str(folder / place / name)

    for name, model in CATALOGUE.items():
        scales = SCALES if "scales" in FAMILIES[model.family].options else None
        tiny = PublishedOptions(SIDE, None if model.generator is None else 2, scales)
        monkeypatch.setitem(CATALOGUE, name, replace(model, options=tiny))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked
