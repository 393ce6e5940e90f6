"""Imports of the small models that were made with other projects' own classes: their codes, pictures and draws."""

from pathlib import Path

import pytest
import torch

from tests.peers import FOLDER, peer
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.published.importing import import_published
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.tokenizer.modeling import WassersteinVQModel

SCALES = [1, 2, 4]
TOKENIZERS = {"llamagen_vq": "llamagen", "taming_vqgan": "taming", "ibq_tokenizer": "ibq", "var_vqvae": "var"}
TOKENIZERS |= {"wasserstein_var_tokenizer": "wasserstein-var"}


def file_of(name: str) -> str:
    return str(FOLDER / f"{name}.weights.safetensors")


def is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() < 1e-4 * expected.abs().max())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_makes_the_codes_and_pictures_of_its_project(name, tmp_path):
    io, family = peer(name).io, TOKENIZERS[name]
    options = {"scales": SCALES} if "var" in family else {"image_size": 16}
    import_published(ImportRecipe(family, str(tmp_path / "out"), file_of(name), **options))
    tokenizer = WassersteinVQModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        codes = tokenizer.encode(io["pixel_values"]).codes
        pictures = tokenizer.decode_codes(codes)
    assert torch.equal(codes, io["codes"])
    assert is_near(pictures, io["reconstruction"].clamp(-1, 1))


def imported(tmp_path: Path, family: str, tokenizer: str, generator: str, **options) -> ImageGenerationPipeline:
    files = (file_of(tokenizer), file_of(generator))
    import_published(ImportRecipe(family, str(tmp_path / "out"), *files, **options))
    return ImageGenerationPipeline.from_pretrained(tmp_path / "out")


def test_a_llamagen_draws_the_codes_of_its_project(tmp_path):
    io = peer("llamagen_gpt_c2i").io
    pipe = imported(tmp_path, "llamagen", "llamagen_vq", "llamagen_gpt_c2i", image_size=8, num_heads=4)
    for scale in (1, 2):
        expected = io[f"greedy_codes_guidance_{scale}"]
        labels = io["class_labels"][: len(expected)].tolist()
        drawn = pipe(class_labels=labels, temperature=0, guidance_scale=float(scale), seed=0)
        assert torch.equal(drawn.codes.flatten(1), expected)


@pytest.mark.parametrize("name", ["var_transformer", "var_transformer_shared_aln"])
def test_a_var_draws_the_codes_and_pictures_of_its_project(name, tmp_path):
    io = peer(name).io
    pipe = imported(tmp_path, "var", "var_vqvae", name, scales=SCALES, num_heads=4)
    settings = {"temperature": 0, "guidance_scale": 2.5, "guidance_schedule": "linear"}
    drawn = pipe(class_labels=io["class_labels"].tolist(), seed=0, output_type="pt", **settings)
    assert torch.equal(drawn.codes, io["greedy_codes_cfg_1_5"])
    assert is_near(drawn.images, io["greedy_pictures_0_1"] * 2 - 1)
