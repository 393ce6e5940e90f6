"""Every model of the catalogue in its full size, by the shapes of its weights alone."""

import pytest
import torch

from tests.generator.published.shapes import llamagen_shapes, var_shapes, without_memory
from tests.generator.published.test_llamagen import SIZES as LLAMAGEN_SIZES
from tests.tokenizer.published.test_sizes import PUBLISHED, SCALES, build
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.next_scale.modeling import NextScaleTransformer
from wvq.generator.published.registry import read_generator
from wvq.pipelines.matching import require_sizes
from wvq.pipelines.published.catalogue import CATALOGUE
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.published.registry import read_tokenizer, write_tokenizer
from wvq.tokenizer.quantizers.multiscale import MultiScaleQuantizer

# The published tokenizers by their files, or by the model's name where the file has none or one of several.
TOKENIZERS = {"vq_ds16_c2i.pt": "vq_ds16", "vq_ds16_t2i.pt": "vq_ds16", "vq_ds8_c2i.pt": "vq_ds8"}
TOKENIZERS |= {"vae_ch160v4096z32.pth": "var", "janus-vq-16": "janus"}
TOKENIZERS |= {f"taming-f16-{codes}": f"taming-{codes}" for codes in (1_024, 16_384)}


def full_tokenizer(name: str) -> WassersteinVQModel:
    model = CATALOGUE[name]
    family, fields, image_size, _ = PUBLISHED[TOKENIZERS.get(model.tokenizer.name) or TOKENIZERS.get(name, name)]
    weights = write_tokenizer(family, build(fields, image_size))
    return read_tokenizer(model.family, weights, name, ImportRecipe(name, "out").options)


def full_generator(name: str, tokenizer: WassersteinVQModel) -> CodeGenerator:
    model = CATALOGUE[name]
    if model.family == "var":
        depth = int(name.removeprefix("var-d"))
        scales = SCALES[model.options.image_size]
        shapes = var_shapes(64 * depth, depth, depth, scales, shared=depth == 36)
    else:
        size = LLAMAGEN_SIZES[name.split("-")[-2].upper()]
        shapes = llamagen_shapes(*size, text=(120, 2_048) if model.text_encoder else None)
    options = ImportRecipe(name, "out").options
    with torch.device("meta"):
        return read_generator(model.family, without_memory(shapes), name, options, tokenizer)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_published_model_needs_no_option(name, monkeypatch):
    model = CATALOGUE[name]
    # What copies or hashes weights has none here.
    monkeypatch.setattr(WassersteinVQModel, "codes_hash", lambda self: "0" * 64)
    monkeypatch.setattr(MultiScaleQuantizer, "code_tensors", lambda self, device: {})
    monkeypatch.setattr(NextScaleTransformer, "take_quantizer", lambda self, tensors: None)
    tokenizer = full_tokenizer(name)
    assert tokenizer.config.image_size == model.options.image_size
    if model.generator is None:
        assert model.size == f"K {tokenizer.config.num_codes:,}"
        return
    generator = full_generator(name, tokenizer)
    if not model.text_encoder:
        require_sizes(generator.config, tokenizer.config, None)
    count = sum(parameter.numel() for parameter in generator.parameters())
    published = float(model.size[:-1]) * {"M": 1e6, "B": 1e9}[model.size[-1]]
    assert count == pytest.approx(published, rel=0.05)
