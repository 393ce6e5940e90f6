"""Training the tokenizer end to end on tiny pictures: what a run writes, and what it refuses."""

import copy
import json
import shutil

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wvq.data.dataset import load_images
from wvq.errors import CheckpointError, ConfigError, DataError
from wvq.files.names import RECIPE_NAME
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.processing import ImageProcessor
from wvq.tokenizer.task import reconstruction_sheet
from wvq.tokenizer.train import train_tokenizer
from wvq.training.tracking import read_log


def test_a_run_learns(tiny_tokenizer_dir):
    rows = [row for row in read_log(tiny_tokenizer_dir / "training") if row["kind"] == "train"]
    assert [row["images"] for row in rows] == list(range(64, 641, 64))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["l1"] < 0.6 * rows[0]["l1"]
    assert rows[-1]["utilization"] > rows[0]["utilization"]
    assert {"codebook", "commitment", "alignment", "perplexity", "gradient_norm_codebook"} <= rows[0].keys()
    assert rows[0]["learning_rate_codebook"] == rows[-1]["learning_rate_codebook"] == 0.02
    assert rows[-1]["learning_rate_matrices"] < rows[0]["learning_rate_matrices"]


def test_a_run_writes_its_files(tiny_tokenizer_dir):
    result = json.loads((tiny_tokenizer_dir / "result.json").read_text())
    assert result["images"] == 640
    assert result["num_images"] == 12
    assert result["num_tokens"] == 12 * 16
    assert result["skipped_steps"] == 0
    assert result["cut_short"] is False
    assert {"psnr_rgb", "psnr_y", "ssim", "quantization_error", "utilization", "perplexity"} <= result.keys()
    recipe = yaml.safe_load((tiny_tokenizer_dir / "recipe.yaml").read_text())
    assert recipe["model"]["num_codes"] == 32
    assert recipe["train"]["beta2"] == 0.95
    with Image.open(tiny_tokenizer_dir / "training" / "pictures" / "000000640.png") as sheet:
        assert sheet.width > 8 * 96
    events = EventAccumulator(str(tiny_tokenizer_dir / "training" / "tensorboard")).Reload()
    assert {"train/loss", "validation/psnr_rgb"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["held_out"]
    assert len(events.Scalars("train/loss")) == 10


def test_the_saved_tokenizer_gives_the_reported_figures(tiny_tokenizer_dir, tiny_tokenizer_recipe):
    model = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    assert model.config.class_names == ["circle", "cross", "square"]
    assert ImageProcessor.from_pretrained(tiny_tokenizer_dir).size == 16
    images = load_images(tiny_tokenizer_recipe(tiny_tokenizer_dir).data)
    figures = evaluate_tokenizer(model, images.validation, batch_size=5)
    result = json.loads((tiny_tokenizer_dir / "result.json").read_text())
    assert figures == pytest.approx({name: result[name] for name in figures}, rel=1e-5)


def test_the_sheet_shows_originals_above_their_reconstructions(tiny_tokenizer_dir, tiny_tokenizer_recipe):
    model = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    validation = load_images(tiny_tokenizer_recipe(tiny_tokenizer_dir).data).validation
    few = torch.utils.data.Subset(validation, range(3))
    sheet = reconstruction_sheet(model, few)
    assert sheet.width > sheet.height  # 3 columns, 2 rows


def short(train=None, **changes):
    return {"train": {"images": 64, "log_every": 16, **(train or {})}, **changes}


def test_an_occupied_folder_is_refused_and_untouched(tmp_path, tiny_tokenizer_recipe):
    out = tmp_path / "run"
    train_tokenizer(tiny_tokenizer_recipe(out, **short()))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match="already holds a run; pass --resume"):
        train_tokenizer(tiny_tokenizer_recipe(out, **short()))
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_resuming_refuses_what_it_cannot_continue(tmp_path, tiny_tokenizer_recipe):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="holds no run to resume"):
        train_tokenizer(tiny_tokenizer_recipe(out, **short()), resume=True)
    train_tokenizer(tiny_tokenizer_recipe(out, **short()))
    with pytest.raises(ConfigError, match=r"another train.learning_rate \(0.002, now 0.01\)"):
        train_tokenizer(tiny_tokenizer_recipe(out, **short({"learning_rate": 0.01})), resume=True)
    with pytest.raises(ConfigError, match=r"another model.num_codes \(32, now 16\)"):
        train_tokenizer(tiny_tokenizer_recipe(out, **short(model={"num_codes": 16})), resume=True)


def test_a_finished_run_is_not_trained_again(tmp_path, tiny_tokenizer_recipe):
    recipe = tiny_tokenizer_recipe(tmp_path / "run", **short())
    result = train_tokenizer(recipe)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.warns(UserWarning, match="has come to its end"):
        assert train_tokenizer(recipe, resume=True) == result
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    (tmp_path / "run" / "result.json").unlink()  # cut off before its end, and without a checkpoint
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        train_tokenizer(recipe, resume=True)


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, tiny_tokenizer_recipe):
    settings = short({"save_every": 32}, data={"crop": "random", "flip": True}, model={"dropout": 0.1})
    whole, cut = tiny_tokenizer_recipe(tmp_path / "whole", **settings), tmp_path / "cut"
    train_tokenizer(whole)
    resumed = copy.deepcopy(whole)
    resumed.out = str(cut)
    shutil.copytree(whole.out, cut)
    shutil.rmtree(cut / "training" / "checkpoints" / "000000000064")
    (cut / "model.safetensors").unlink()
    train_tokenizer(resumed, resume=True)
    a, b = WassersteinVQModel.from_pretrained(whole.out), WassersteinVQModel.from_pretrained(cut)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

    def losses(folder):
        return [(row["images"], row.get("loss"), row.get("psnr_rgb")) for row in read_log(folder)]

    assert losses(cut / "training") == losses(tmp_path / "whole" / "training")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_code": 3}, r'no field "num_code" \(did you mean "num_codes"'),
        ({"image_size": 32}, "model.image_size comes from the data"),
        ({"class_names": ["a"]}, "model.class_names comes from the data"),
        ({"channel_multipliers": [1, 1, 1, 1, 1]}, "image_size must be a multiple of the downsampling factor 32"),
        ({"channel_multipliers": [1, 1, 1, 1]}, "^model.channel_multipliers makes a grid of 1 x 1 codes and 8 ch"),
    ],
)
def test_bad_model_settings_are_refused_before_a_folder_is_made(tmp_path, tiny_tokenizer_recipe, model, message):
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(tiny_tokenizer_recipe(tmp_path / "run", model=model))
    assert not (tmp_path / "run" / RECIPE_NAME).exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"quantizer": "fsq", "levels": [4, 4, 2], "num_codes": 32, "code_dim": 3}, '"fsq"'),
        ({"quantizer": "ema", "alignment_weight": None}, '"ema"'),
    ],
)
def test_a_rate_of_a_codebook_that_no_gradient_moves_is_reported(tmp_path, tiny_tokenizer_recipe, model, name):
    recipe = tiny_tokenizer_recipe(tmp_path / "run")
    recipe.model = {**recipe.model, **model}
    recipe.train.images = 64
    with pytest.warns(UserWarning, match=f"codebook_learning_rate does nothing: the quantizer {name} trains no codes"):
        train_tokenizer(recipe)


def test_other_bad_settings_are_refused_before_a_folder_is_made(tmp_path, tiny_tokenizer_recipe):
    with pytest.raises(ConfigError, match=r"train.batch_size must be an integer of at least 1"):
        train_tokenizer(tiny_tokenizer_recipe(tmp_path / "run", train={"batch_size": 0}))
    with pytest.raises(DataError, match="none"):
        train_tokenizer(tiny_tokenizer_recipe(tmp_path / "run", data={"path": str(tmp_path / "none")}))
    assert not (tmp_path / "run").exists()
