"""Everything through the Python API on tiny models: train both stages, export, sample, evaluate, reload, repeat."""

import math

import numpy as np
import pytest
import torch

from tests.tiny import save_text_encoder
from wvq import CodeDataset, ImageGenerationPipeline, WassersteinVQModel
from wvq.data.dataset import load_images
from wvq.eval.features.networks import load_feature_network
from wvq.eval.generation import evaluate_generation
from wvq.eval.reconstruction import evaluate_reconstruction
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.pipelines.assemble import train_pipeline
from wvq.settings.train import TrainConfig
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.recipes import ExportRecipe
from wvq.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory, caption_folder, tiny_tokenizer_recipe, tiny_data):
    """Folder, figures and pipeline of a run on captioned pictures of coloured shapes."""
    out = tmp_path_factory.mktemp("run")
    tokenizer = tiny_tokenizer_recipe(out / "tokenizer", train={"images": 2400}, data={"path": str(caption_folder)})
    results = {"tokenizer": train_tokenizer(tokenizer)}
    data = tiny_data(caption_folder, crop="random")
    export_codes(ExportRecipe(out=str(out / "codes"), tokenizer=tokenizer.out, data=data, num_crops=4))
    recipe = GeneratorRecipe(
        out=str(out),
        codes=str(out / "codes"),
        tokenizer=tokenizer.out,
        condition=ConditionConfig(text=True, text_encoder=str(save_text_encoder(out / "encoder")), text_length=5),
        model={"hidden_size": 64, "num_layers": 2, "num_heads": 2, "dropout": 0.1, "token_dropout": 0.1},
        train=TrainConfig(images=2400, batch_size=32, learning_rate=3e-3, ema_decay=0.95, log_every=480),
    )
    results["generator"], pipe = train_pipeline(recipe, sampling=SamplingSettings(guidance_scale=2.0))
    return out, results, pipe


def test_the_tokenizer_learned_to_draw(run):
    result = run[1]["tokenizer"]
    assert result["psnr_rgb"] > 15
    assert result["utilization"] > 0.9


def test_the_generator_learned_more_than_frequencies(run):
    result = run[1]["generator"]
    assert result["loss"] < result["unigram_entropy"] - 0.3
    assert result["unigram_entropy"] <= math.log(32)


def mean_color(pictures: torch.Tensor) -> torch.Tensor:
    """Of the middle of each picture (N, 3)."""
    return pictures[:, :, 5:11, 5:11].mean((2, 3))


def test_samples_follow_the_prompt(run):
    pipe = run[2]
    prompts = ("red square", "blue square")
    red, blue = (mean_color(pipe(prompt=p, num_images=8, seed=0, output_type="pt").images) for p in prompts)
    assert (red[:, 0] - red[:, 2]).mean() > (blue[:, 0] - blue[:, 2]).mean() + 0.3


def test_a_reloaded_pipeline_draws_identical_samples(run):
    out, _, pipe = run
    again = ImageGenerationPipeline.from_pretrained(out)
    assert again.class_names == ["circle", "cross", "square"]
    assert again.sampling.guidance_scale == 2.0
    call = {"class_labels": ["cross", "circle"], "prompt": ["red cross", "blue circle"], "num_images": 6, "seed": 3}
    ours, theirs = pipe(**call, output_type="np"), again(**call, output_type="np")
    assert torch.equal(ours.codes, theirs.codes)
    assert np.array_equal(ours.images, theirs.images)


def test_the_cache_holds_the_codes_of_the_pictures(run, caption_folder, tiny_data):
    out = run[0]
    tokenizer = WassersteinVQModel.from_pretrained(out / "tokenizer")
    images = load_images(tiny_data(caption_folder)).train
    codes = CodeDataset(out / "codes")
    assert len(codes) == len(images)
    for index in (0, 20, len(codes) - 1):
        with torch.no_grad():
            expected = tokenizer.encode(images[index]["pixel_values"][None]).codes
        assert torch.equal(codes[index]["codes"], expected.flatten())  # the first crop is the centre
        assert codes.caption(index) == images.captions[index]


def test_evaluation(run, caption_folder, tiny_data):
    _, results, pipe = run
    images = load_images(tiny_data(caption_folder))
    network = load_feature_network("efficientnet_lite0")
    figures = evaluate_reconstruction(pipe.tokenizer, images.validation, network, progress=False)["metrics"]
    assert figures["psnr_rgb"] == pytest.approx(results["tokenizer"]["psnr_rgb"], abs=0.01)
    assert figures["utilization"] == pytest.approx(results["tokenizer"]["utilization"])
    result = evaluate_generation(pipe, images.train, 24, feature_network=network, progress=False)
    assert result["num_images"] == 24
    assert math.isfinite(result["metrics"]["kd_efficientnet_lite0"])
