"""Training the depth generator over a cache of product codes, and the pipeline that comes of it."""

import math
import shutil

import numpy as np
import pytest
import torch

from tests.tiny import CLASS_NAMES, TEXT_DIM
from wvq.app.cli import main
from wvq.app.describe import describe
from wvq.data.codes import CodeDataset
from wvq.data.dataset import load_images
from wvq.errors import ConfigError
from wvq.eval.features.networks import load_feature_network
from wvq.eval.generation import evaluate_generation
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.depth.modeling import DepthTransformer
from wvq.generator.recipes import ObjectiveConfig
from wvq.generator.reduced import REDUCED
from wvq.models.pretrained import weights_hash
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import model_card
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.training.checkpoints import find_checkpoints
from wvq.training.tracking import read_log


@pytest.mark.parametrize("head", ["transformer", "parallel"])
def test_a_run_learns_and_reports_what_its_model_has(head, product_recipe, trained, product_codes_dir, tmp_path):
    result = trained(product_recipe({"ema_decay": 0.9}, {"depth_head": head}))
    out = tmp_path / "run" / "generator"
    steps = [row["loss"] for row in read_log(out / "training") if row["kind"] == "train"]
    assert steps[0] == pytest.approx(math.log(32), abs=1e-3)  # the first step: heads of zero
    assert steps[-1] < steps[0] - 0.2
    assert len(list((out / "training").rglob("*.png"))) >= 1
    model = DepthTransformer.from_pretrained(out)
    assert (model.config.num_groups, model.config.depth_head, model.config.grid) == (2, head, [4, 4])
    assert model.config.class_names == CLASS_NAMES
    held_out = CodeDataset(product_codes_dir, "validation")
    labels = torch.tensor([held_out.label(i) for i in range(len(held_out))])
    with torch.no_grad():
        loss = model(held_out.codes(range(len(held_out))), labels).loss.item()
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert len(result["loss_per_position"]) == 32
    assert result["bits_per_pixel"] == pytest.approx(loss * 32 / math.log(2) / 256, rel=1e-5)


def test_text_and_code_vectors(product_recipe, trained, product_tokenizer_dir, text_condition, tmp_path):
    trained(product_recipe({"images": 32}, {"code_dim": 4, "condition_bias": True}, condition=text_condition))
    model = DepthTransformer.from_pretrained(tmp_path / "run" / "generator")
    assert (model.config.text_dim, model.config.code_dim, model.codebook.shape) == (TEXT_DIM, 4, (2, 32, 2))
    quantizer = WassersteinVQModel.from_pretrained(product_tokenizer_dir).quantizer
    vectors = quantizer.lookup(torch.arange(32)[:, None].expand(-1, 2))[:, 2:]  # of the second codebook
    torch.testing.assert_close(model.codebook[1], (vectors - vectors.mean(0)) / vectors.std(), atol=1e-5, rtol=1e-5)


def test_a_resumed_run_ends_as_the_uninterrupted_one(product_recipe, trained, text_condition, tmp_path):
    loop = {"images": 96, "save_every": 48, "keep_checkpoints": 9, "ema_decay": 0.9}
    settings = product_recipe(loop, condition=text_condition)
    whole = trained(settings)
    folder = tmp_path / "run" / "generator"
    expected = weights_hash(DepthTransformer.from_pretrained(folder))
    logged = read_log(folder / "training")
    for checkpoint in find_checkpoints(folder / "training")[1:]:
        shutil.rmtree(checkpoint)
    (folder / "model.safetensors").unlink()
    assert trained(settings, resume=True)["loss"] == whole["loss"]
    assert weights_hash(DepthTransformer.from_pretrained(folder)) == expected
    losses = [
        [row["loss"] for row in rows if row["kind"] == "train"] for rows in (logged, read_log(folder / "training"))
    ]
    assert losses[0] == losses[1]


def test_what_does_not_fit_the_codes_is_refused(product_recipe, trained, tmp_path):
    for changes, message in (
        ({"model": {"num_groups": 3}}, r"model\.num_groups comes from the code cache"),
        ({"model": {"code_dim": 6}}, r"model\.code_dim is 6, but .* are vectors of 4"),
        ({"objective": ObjectiveConfig(random_order=0.5)}, r"objective\.random_order is for one code a position"),
        (
            {"model": {"target_positions": True}},
            r"^model\.target_positions is for generators of grid codes, and .* holds product codes; leave it out",
        ),
        ({"model": {"depth_layer": 2}}, r'DepthTransformerConfig has no field "depth_layer" \(did you mean'),
    ):
        with pytest.raises(ConfigError, match=message):
            trained(product_recipe(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["openmoji_32", "cifar10_32", "imagenet_256"])
def test_shipped_recipes_run_in_tiny_form(recipe, product_codes_dir, product_tokenizer_dir, encoder_dir, tmp_path):
    sizes = ["--model.size=null", "--model.hidden_size=32", "--model.num_layers=1", "--model.num_heads=2"]
    sizes += ["--model.code_dim=4", f"--condition.text_encoder={encoder_dir}", "--condition.text_length=5"]
    loop = ["--train.images=32", "--train.batch_size=16", "--train.warmup_images=0", "--train.num_workers=0"]
    loop += ["--train.compile=false", "--train.mixed_precision=no"]
    folders = [f"--codes={product_codes_dir}", f"--tokenizer={product_tokenizer_dir}", f"--out={tmp_path / 'run'}"]
    main(["train-generator", f"--config={recipe}/generator_product", *folders, *sizes, *loop])
    config = DepthTransformer.from_pretrained(tmp_path / "run" / "generator").config
    assert (config.num_groups, config.depth_head, config.depth_layers, config.num_classes) == (2, "transformer", 2, 3)
    assert (config.text_dim > 0) == (recipe == "openmoji_32")


# ---- the pipeline


@pytest.fixture
def run(product_recipe, text_condition, tmp_path):
    recipe = product_recipe({"images": 64}, {"code_dim": 4}, condition=text_condition)
    _, pipe = train_pipeline(recipe, sampling=SamplingSettings(guidance_scale=1.5, top_k=20))
    return tmp_path / "run", pipe


def test_a_pipeline_draws_weighs_and_describes_product_codes(run, caption_folder, tiny_data, capsys):
    out, pipe = run
    call = {"class_labels": ["cross", "circle"], "prompt": ["red cross", "blue circle"], "num_images": 2, "seed": 3}
    output = pipe(**call, output_type="np")
    assert output.codes.shape == (2, 4, 4, 2)
    again = ImageGenerationPipeline.from_pretrained(out)(**call, output_type="np")
    assert torch.equal(again.codes, output.codes)
    assert np.array_equal(again.images, output.images)
    fixed = torch.full((4, 4, 2), -1)
    fixed[:2, :, 0] = output.codes[0, :2, :, 0]  # one codebook of the upper half
    continued = pipe(**call, fixed_codes=fixed).codes
    assert (continued[:, :2, :, 0] == fixed[:2, :, 0]).all()
    logs = pipe.log_likelihood(output.codes, class_labels=["cross", "circle"], prompt=call["prompt"])
    assert logs.shape == (2,)
    assert ((-32 * math.log(32) * 1.5 < logs) & (logs < 0)).all()
    with pytest.raises(ConfigError, match="window is for generators of one code a position"):
        pipe(**call, window=4)

    assert "4 x 4 a picture, 2 at each position, K = 32" in describe(out / "generator")
    assert "2 layers, width 32" in model_card(pipe)
    main(["sample", str(out), "--num_images=2", "--seed=1", f"--out={out / 'samples'}"])
    assert len(list((out / "samples").glob("0*.png"))) == 2
    main(["info", str(out)])
    assert "2 at each position" in capsys.readouterr().out

    images = load_images(tiny_data(caption_folder)).train
    result = evaluate_generation(
        pipe, images, 9, feature_network=load_feature_network("efficientnet_lite0"), progress=False
    )
    assert math.isfinite(result["metrics"]["kd_efficientnet_lite0"])


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_reduced_weights_keep_the_distribution(run, weights):
    out, pipe = run
    reduced = ImageGenerationPipeline.from_pretrained(out, weights=weights)
    codes = torch.randint(0, 32, (4, 4, 4, 2), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, ours = (one(codes).logits.log_softmax(-1) for one in (pipe.generator, reduced.generator))
    assert 0 < (expected.exp() * (expected - ours)).sum(-1).mean() < 1e-3
    layers = [getattr(part, name) for part, name in reduced.generator.linear_layers()]
    assert {type(layer) for layer in layers} == {REDUCED[weights]}
    assert len(layers) == 4 * (2 + 2) + 1 + 2  # of the body, over depth, the tokens there, two classifiers
    call = {"prompt": "red cross", "num_images": 2, "seed": 3}
    assert torch.equal(reduced(**call).codes, reduced(**call).codes)
