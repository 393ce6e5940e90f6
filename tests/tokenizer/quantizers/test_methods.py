"""Every quantizer in a whole tokenizer: trains, saves, loads, and decodes its codes as its quantized features."""

import copy
import json
from pathlib import Path

import pytest
import torch

from wvq.data.dataset import load_images
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers.registry import QUANTIZERS
from wvq.tokenizer.train import train_tokenizer
from wvq.training.tracking import read_log

SHAPES = {"fsq": {"num_codes": 32, "code_dim": 3, "levels": [4, 4, 2]}, "lfq": {"num_codes": 32, "code_dim": 5}}
LAYOUTS = {"grid": {}, "product": {"num_groups": 2}, "multi-scale": {"scales": [1, 2, 4]}}
CODES = {"grid": (6, 4, 4), "product": (6, 4, 4, 2), "multi-scale": (6, 21)}
CASES = [(name, layout, "ste") for name in sorted(QUANTIZERS) for layout in LAYOUTS]
CASES += [("vanilla", "grid", "rotation"), ("vanilla", "multi-scale", "rotation")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def trained(request, tmp_path_factory, tiny_tokenizer_recipe):
    """The recipe and the result of a run of three steps."""
    name, layout, estimator = request.param
    shape = {"num_codes": 32, "code_dim": 4, "num_groups": 1, **SHAPES.get(name, {}), **LAYOUTS[layout]}
    shape["code_dim"] *= shape["num_groups"]
    model = {**shape, "quantizer": name, "gradient_estimator": estimator, "affine_interval": 2}
    loop = {"images": 48, "log_every": 16, "ema_decay": 0.0}
    recipe = tiny_tokenizer_recipe(tmp_path_factory.mktemp("method") / "run", train=loop, model=model)
    return recipe, train_tokenizer(copy.deepcopy(recipe))


@pytest.fixture(scope="module")
def validation(tiny_tokenizer_recipe):
    """The held-out pictures of all runs."""
    return load_images(tiny_tokenizer_recipe("none").data).validation


@pytest.fixture(scope="module")
def pixels(validation):
    return torch.stack([validation[i]["pixel_values"] for i in range(6)])


def test_training_steps_are_taken(trained):
    recipe, result = trained
    rows = [row for row in read_log(f"{recipe.out}/training") if row["kind"] == "train"]
    assert [row["images"] for row in rows] == [16, 32, 48]
    assert result["skipped_steps"] == 0
    assert rows[-1]["l1"] < rows[0]["l1"]
    loaded = WassersteinVQModel.from_pretrained(recipe.out)
    torch.manual_seed(recipe.train.seed)
    start = WassersteinVQModel(loaded.config).state_dict()
    moved = {name for name, value in loaded.state_dict().items() if not torch.equal(value, start[name])}
    codebooks = {name for name in start if "codebook" in name or "map." in name}
    frozen = (
        codebooks - {name for name in codebooks if "map." in name} if loaded.config.quantizer == "linear" else set()
    )
    # At the start coarse features fall on the code 0 of fsq, from which a convolution's weights learn nothing.
    maybe = {name for name in start if "convs" in name} if loaded.config.quantizer == "fsq" else set()
    assert moved - maybe == start.keys() - frozen - maybe


def test_the_saved_tokenizer_gives_the_reported_figures(trained, validation):
    recipe, result = trained
    model = WassersteinVQModel.from_pretrained(recipe.out)
    figures = evaluate_tokenizer(model, validation, batch_size=5)
    written = json.loads(Path(recipe.out, "result.json").read_text())
    for name, value in figures.items():
        assert value == pytest.approx(result[name], rel=1e-5)
        assert value == pytest.approx(written[name], rel=1e-5)


@torch.no_grad()
def test_codes_survive_saving_and_loading(trained, pixels, tmp_path):
    recipe, _ = trained
    model = WassersteinVQModel.from_pretrained(recipe.out)
    encoded = model.encode(pixels)
    assert encoded.codes.shape == CODES[model.config.code_layout["kind"]]
    assert 0 <= encoded.codes.min() <= encoded.codes.max() < 32
    model.save_pretrained(tmp_path)
    again = WassersteinVQModel.from_pretrained(tmp_path)
    for field in ("quantizer", "num_groups", "scales", "gradient_estimator", "levels", "affine_interval"):
        assert getattr(again.config, field) == getattr(model.config, field) == recipe.model.get(field)
    assert torch.equal(again.encode(pixels).codes, encoded.codes)
    assert torch.equal(again.decode_codes(encoded.codes), model.decode_codes(encoded.codes))


@torch.no_grad()
def test_decoding_codes_equals_decoding_quantized_features_and_the_forward_pass(trained, pixels):
    model = WassersteinVQModel.from_pretrained(trained[0].out)
    encoded, output = model.encode(pixels), model(pixels)
    decoded = model.decode_codes(encoded.codes)
    assert decoded.shape == pixels.shape
    assert torch.equal(output.codes, encoded.codes)
    assert torch.equal(decoded, model.decode(encoded.quantized))
    assert torch.equal(decoded, output.reconstruction.clamp(-1, 1))
    error = (encoded.features - encoded.quantized).square().sum(1).mean()
    torch.testing.assert_close(output.statistics["quantization_error"], error, rtol=1e-4, atol=1e-6)
