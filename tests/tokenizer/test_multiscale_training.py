"""Training multi-scale tokenizers: weights of the scales, rates of their own, and the shipped recipes in tiny form."""

import copy
import shutil

import pytest
import torch

from wvq.errors import ConfigError
from wvq.files.names import RECIPE_NAME
from wvq.settings.parser import load_recipe
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import LossConfig, TokenizerRecipe, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask
from wvq.tokenizer.train import train_tokenizer
from wvq.training.tracking import read_log

SCALES = {"scales": [1, 2, 4], "num_scale_convs": 2, "quantizer": "wasserstein"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tokenizer_recipe):
    """The recipe of a run that set all these options and left a checkpoint in the middle."""
    out = tmp_path_factory.mktemp("scales") / "run"
    model = SCALES | {"scale_weights": [1, 2, 5], "target_scale": 0.5, "window_size": 87_040}
    train = {"images": 96, "save_every": 48, "log_every": 16, "scale_conv_learning_rate": 0.001, "warmup_images": 32}
    recipe = tiny_tokenizer_recipe(out, model=model, train=train)
    train_tokenizer(recipe)
    return recipe


def groups(model, **settings):
    task = TokenizerTask(ReconstructionLoss(LossConfig()), None, TokenizerTrainConfig(**settings))
    return {group["name"]: group for group in task.parameter_groups(model)}


def ids(params):
    return {id(p) for p in params}


def test_convolutions_have_a_group_of_their_own_where_their_rate_is_given(trained):
    model = WassersteinVQModel.from_pretrained(trained.out)
    convs = ids(model.quantizer.convs.parameters())
    settings = {"learning_rate": 1e-4, "codebook_learning_rate": 0.005, "weight_decay": 0.1}
    shared, apart = groups(model, **settings), groups(model, **settings, scale_conv_learning_rate=0.001)
    assert list(shared) == ["matrices", "vectors", "codebook"]
    assert list(apart) == [*shared, "scale_convs"]
    assert ids(apart["scale_convs"]["params"]) == convs
    for name in ("matrices", "vectors"):
        assert ids(shared[name]["params"]) & convs
        assert ids(apart[name]["params"]) == ids(shared[name]["params"]) - convs
    assert ids(apart["codebook"]["params"]) == ids(shared["codebook"]["params"])
    own = apart["scale_convs"]
    assert (own["lr"], own["weight_decay"], own["scheduled"], own["clip"]) == (0.001, 0.0, False, "scale_convs")
    follow = groups(model, **settings, scale_conv_learning_rate=0.001, codebook_schedule="network")
    assert follow["scale_convs"]["scheduled"]
    model.freeze(["quantizer"])
    assert list(groups(model, **settings, scale_conv_learning_rate=0.001)) == ["matrices", "vectors"]


def test_the_rates_are_constant_while_the_networks_follows_its_schedule(trained):
    rows = [row for row in read_log(f"{trained.out}/training") if row["kind"] == "train"]
    assert {row["learning_rate_scale_convs"] for row in rows} == {0.001}
    assert {row["learning_rate_codebook"] for row in rows} == {0.02}
    assert len({row["learning_rate_matrices"] for row in rows}) > 3
    assert all(row["gradient_norm_scale_convs"] > 0 for row in rows)


def test_a_resumed_run_ends_as_the_uninterrupted_one(trained, tmp_path):
    resumed = copy.deepcopy(trained)
    resumed.out = str(tmp_path / "cut")
    shutil.copytree(trained.out, resumed.out)
    shutil.rmtree(tmp_path / "cut" / "training" / "checkpoints" / "000000000096")
    (tmp_path / "cut" / "model.safetensors").unlink()
    train_tokenizer(resumed, resume=True)
    a, b = (WassersteinVQModel.from_pretrained(recipe.out).state_dict() for recipe in (trained, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [
        [row["loss"] for row in read_log(f"{recipe.out}/training") if "loss" in row] for recipe in (trained, resumed)
    ]
    assert rows[0] == rows[1]


def test_the_rate_changes_what_the_convolutions_become(trained, tmp_path, tiny_tokenizer_recipe):
    other = copy.deepcopy(trained)
    other.out, other.train.scale_conv_learning_rate = str(tmp_path / "run"), None
    train_tokenizer(other)
    rows = [row for row in read_log(f"{other.out}/training") if row["kind"] == "train"]
    assert "learning_rate_scale_convs" not in rows[0]
    a, b = (WassersteinVQModel.from_pretrained(recipe.out).quantizer.convs[0] for recipe in (trained, other))
    assert not torch.equal(a.weight, b.weight)


@pytest.mark.parametrize("model", [{}, {"num_groups": 2}, {"scales": [1, 2, 4], "num_scale_convs": 0}])
def test_a_rate_of_convolutions_that_are_not_there_is_refused(tmp_path, tiny_tokenizer_recipe, model):
    recipe = tiny_tokenizer_recipe(tmp_path / "run", model=model, train={"scale_conv_learning_rate": 0.001})
    with pytest.raises(ConfigError, match=r"^train.scale_conv_learning_rate is for .* set it to null, or give model.s"):
        train_tokenizer(recipe)
    assert not (tmp_path / "run" / RECIPE_NAME).exists()


# Networks as small as the grid of the recipe allows, and no loss whose network is a download.
TINY = {
    "openmoji_32": {"model.channel_multipliers": [1, 2], "data.classes": None},
    "cifar10_32": {"model.channel_multipliers": [1, 2], "model.patch_size": 2},
    "imagenet_256": {"model.channel_multipliers": [1], "model.patch_size": 16},
}


@pytest.mark.parametrize("folder", TINY)
def test_the_shipped_recipes_train(folder, tmp_path, picture_folder):
    changes = {"data.path": str(picture_folder), "data.validation_split": None, "out": str(tmp_path / "run")}
    changes |= {"model.base_channels": 8, "model.num_res_blocks": 1, "model.attention": False, "model.num_codes": 64}
    changes |= {"loss.perceptual_weight": 0.0, "discriminator.network": "none", "train.mixed_precision": "no"}
    changes |= {"train.images": 16, "train.batch_size": 8, "train.log_every": 8, "train.num_workers": 0}
    recipe = load_recipe(TokenizerRecipe, f"{folder}/tokenizer_multiscale", changes | TINY[folder])
    result = train_tokenizer(recipe)
    scales = recipe.model["scales"]
    assert len(result["utilization_per_scale"]) == len(scales)
    config = WassersteinVQModel.from_pretrained(recipe.out).config
    assert config.sequence_length == sum(side**2 for side in scales)
    assert {name: getattr(config, name) for name in recipe.model} == recipe.model
    last = [row for row in read_log(f"{recipe.out}/training") if row["kind"] == "train"][-1]
    assert last["learning_rate_codebook"] == recipe.train.codebook_learning_rate
    assert last.get("learning_rate_scale_convs") == recipe.train.scale_conv_learning_rate


def test_the_recipe_of_imagenet_has_the_values_of_the_authors():
    recipe = load_recipe(TokenizerRecipe, "imagenet_256/tokenizer_multiscale")
    model, train = recipe.model, recipe.train
    assert model["scales"] == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
    assert model["scale_weights"] == [1, 1, 1, 2, 2, 2, 3, 3, 5, 5]
    assert sum(side**2 for side in model["scales"]) * 128 == model["window_size"] == 87_040
    assert (model["quantizer"], model["num_codes"], model["target_scale"]) == ("wasserstein", 4096, 0.5)
    assert (train.codebook_learning_rate, train.scale_conv_learning_rate) == (0.005, 0.001)
