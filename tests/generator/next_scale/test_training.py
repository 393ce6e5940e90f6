"""Training a next-scale generator over a cache of multi-scale codes, and the pipeline that comes of it."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import CLASS_NAMES, TEXT_DIM, save_text_encoder
from wvq.app.cli import main
from wvq.app.describe import describe
from wvq.data.codes import CodeDataset
from wvq.data.dataset import load_images
from wvq.errors import ConfigError
from wvq.eval.features.networks import load_feature_network
from wvq.eval.generation import evaluate_generation
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_scale.modeling import NextScaleTransformer
from wvq.generator.recipes import ConditionConfig, ObjectiveConfig
from wvq.generator.reduced import REDUCED
from wvq.models.pretrained import weights_hash
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import model_card
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.training.checkpoints import find_checkpoints
from wvq.training.tracking import read_log


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


@pytest.fixture
def texts(encoder_dir):
    return ConditionConfig(text=True, text_encoder=str(encoder_dir), text_length=5)


def losses(folder) -> list[float]:
    return [row["loss"] for row in read_log(folder / "training") if row["kind"] == "train"]


@pytest.mark.parametrize("conditioning", ["adaptive", "adaptive_shared", "prefix"])
def test_a_run_learns_and_reports_its_figures_by_scale(conditioning, scale_recipe, trained, scale_codes_dir, tmp_path):
    result = trained(scale_recipe({"ema_decay": 0.9}, {"conditioning": conditioning}))
    out = tmp_path / "run" / "generator"
    steps = losses(out)
    assert steps[0] == pytest.approx(math.log(32), abs=0.1)
    assert steps[-1] < steps[0] - 0.2
    assert len(list((out / "training").rglob("*.png"))) == 1
    model = NextScaleTransformer.from_pretrained(out)
    assert (model.config.scales, model.config.conditioning, model.config.grid) == ([1, 2, 4], conditioning, [4, 4])
    assert model.config.class_names == CLASS_NAMES
    held_out = CodeDataset(scale_codes_dir, "validation")
    labels = torch.tensor([held_out.label(i) for i in range(len(held_out))])
    with torch.no_grad():
        loss = model(held_out.codes(range(len(held_out))), labels).loss.item()
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["bits_per_pixel"] == pytest.approx(loss * 21 / math.log(2) / 256, rel=1e-5)
    by_position = result["loss_per_position"]
    expected = [np.mean(part) for part in (by_position[:1], by_position[1:5], by_position[5:])]
    assert result["loss_per_scale"] == pytest.approx(expected, abs=1e-4)


def test_the_model_keeps_what_makes_features_of_codes(scale_recipe, trained, scale_tokenizer_dir, tmp_path):
    """The features of its own maps are those of the tokenizer's codes."""
    trained(scale_recipe({"images": 16}))
    model = NextScaleTransformer.from_pretrained(tmp_path / "run" / "generator")
    quantizer = WassersteinVQModel.from_pretrained(scale_tokenizer_dir).quantizer
    codes = torch.randint(0, 32, (3, 21), generator=torch.Generator().manual_seed(0))
    maps = 0.0
    for index, part in enumerate(codes.split([1, 4, 16], 1)):
        maps = model.add_scale(maps, part, index)
    with torch.no_grad():
        expected = quantizer.lookup(codes).movedim(-1, 1)
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("conditioning", ["adaptive", "prefix"])
def test_captions_may_lie_on_disk_in_memory_or_nowhere(conditioning, scale_recipe, trained, texts, tmp_path):
    results = {}
    for kept in ("memory", "none", "disk"):
        settings = scale_recipe(
            {"images": 48}, {"conditioning": conditioning}, condition=replace(texts, text_cache=kept)
        )
        results[kept] = trained(replace(settings, out=str(tmp_path / kept)))["loss"]
    assert results["disk"] == results["memory"]
    assert results["none"] == pytest.approx(results["disk"], rel=2e-3)
    model = NextScaleTransformer.from_pretrained(tmp_path / "disk" / "generator")
    assert (model.config.num_classes, model.config.text_dim, model.config.text_length) == (3, TEXT_DIM, 5)
    assert model.condition.text_projection.bias.abs().sum() > 0  # whitened features are centred


def test_a_resumed_run_ends_as_the_uninterrupted_one(scale_recipe, trained, texts, tmp_path):
    loop = {"images": 96, "save_every": 48, "keep_checkpoints": 9, "ema_decay": 0.9}
    settings = scale_recipe(loop, {"drop_path": 0.2}, condition=texts)
    whole = trained(settings)
    folder = tmp_path / "run" / "generator"
    expected, logged = weights_hash(NextScaleTransformer.from_pretrained(folder)), losses(folder)
    for checkpoint in find_checkpoints(folder / "training")[1:]:
        shutil.rmtree(checkpoint)
    (folder / "model.safetensors").unlink()
    assert trained(settings, resume=True)["loss"] == whole["loss"]
    assert weights_hash(NextScaleTransformer.from_pretrained(folder)) == expected
    assert losses(folder) == logged


def test_blocks_computed_again_train_to_the_same_weights(scale_recipe, trained, tmp_path):
    hashes = []
    for again in (False, True):
        out = tmp_path / str(again)
        trained(scale_recipe({"images": 48, "gradient_checkpointing": again}, out=str(out)))
        hashes.append(weights_hash(NextScaleTransformer.from_pretrained(out / "generator")))
    assert hashes[0] == hashes[1]


def test_what_does_not_fit_the_codes_is_refused(scale_recipe, trained, tmp_path):
    for changes, message in (
        ({"model": {"scales": [1, 4]}}, r"model\.scales comes from the code cache"),
        ({"model": {"code_dim": 6}}, r"model\.code_dim comes from the code cache"),
        (
            {"model": {"head": "tied"}},
            r"^model\.head is for generators of grid or product codes, and .* holds multi-scale codes; leave it out",
        ),
        ({"objective": ObjectiveConfig(random_order=0.5)}, r"objective\.random_order is for one code a position"),
        (
            {"model": {"conditioning": "adaptiv"}},
            r"conditioning must be one of adaptive, .*, got 'adaptiv'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            trained(scale_recipe(**changes))
    assert list(tmp_path.iterdir()) == []


# ---- the pipeline


@pytest.fixture
def run(scale_recipe, texts, tmp_path):
    recipe = scale_recipe({"images": 64}, condition=texts)
    _, pipe = train_pipeline(recipe, sampling=SamplingSettings(guidance_scale=1.5, top_k=20))
    return tmp_path / "run", pipe


def test_a_pipeline_draws_weighs_describes_and_is_evaluated(run, caption_folder, tiny_data, capsys):
    out, pipe = run
    call = {"class_labels": ["cross", "circle"], "prompt": ["red cross", "blue circle"], "num_images": 2, "seed": 3}
    output = pipe(**call, output_type="np")
    assert output.codes.shape == (2, 21)
    again = ImageGenerationPipeline.from_pretrained(out)(**call, output_type="np")
    assert torch.equal(again.codes, output.codes)
    assert np.array_equal(again.images, output.images)
    logs = pipe.log_likelihood(output.codes, class_labels=["cross", "circle"], prompt=call["prompt"])
    assert logs.shape == (2,)
    assert ((-21 * math.log(32) * 1.5 < logs) & (logs < 0)).all()

    assert "21 a picture, of the sides 1, 2, 4 one after the other, K = 32" in describe(out / "generator")
    assert "2 layers, width 32" in model_card(pipe)
    main(["sample", str(out), "--num_images=2", "--seed=1", f"--out={out / 'samples'}"])
    assert len(list((out / "samples").glob("0*.png"))) == 2
    main(["info", str(out)])
    assert "of the sides 1, 2, 4" in capsys.readouterr().out

    images = load_images(tiny_data(caption_folder)).train
    network = load_feature_network("efficientnet_lite0")
    result = evaluate_generation(pipe, images, 9, feature_network=network, progress=False)
    assert math.isfinite(result["metrics"]["kd_efficientnet_lite0"])


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_reduced_weights_keep_the_distribution(run, weights):
    out, pipe = run
    reduced = ImageGenerationPipeline.from_pretrained(out, weights=weights)
    codes = torch.randint(0, 32, (4, 21), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, ours = (one.generator(codes).logits.log_softmax(-1) for one in (pipe, reduced))
    assert 0 < (expected.exp() * (expected - ours)).sum(-1).mean() < 1e-3
    layers = [getattr(part, name) for part, name in reduced.generator.linear_layers()]
    assert {type(layer) for layer in layers} == {REDUCED[weights]}
    assert len(layers) == 4 * 2 + 1
    call = {"prompt": "red cross", "num_images": 2, "seed": 3}
    assert torch.equal(reduced(**call).codes, reduced(**call).codes)
