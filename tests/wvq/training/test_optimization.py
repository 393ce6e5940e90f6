"""Optimiser groups and the learning-rate schedule."""

import math

import pytest
from torch import nn

from wvq.generator.recipes import GeneratorRecipe
from wvq.settings.parser import load_recipe
from wvq.settings.train import TrainConfig
from wvq.training.optimization import learning_rate_factor, network_groups, parameter_group

# ---- learning rate


def test_warm_up_is_linear_in_pictures():
    config = TrainConfig(batch_size=10, warmup_images=40, schedule="constant")
    factors = [learning_rate_factor(config, 0.0, images) for images in (0, 10, 20, 30, 40, 1000)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.8, 0.6, 0.2]), ("cosine", [1, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.2])],
)
def test_decay_follows_progress(schedule, expected):
    config = TrainConfig(schedule=schedule, final_learning_rate=0.2)
    factors = [learning_rate_factor(config, progress, 10**6) for progress in (0, 0.25, 0.5, 1)]
    assert factors == pytest.approx(expected)


def test_the_random_order_recipe_reaches_its_peak():
    """RAR (arXiv 2411.00776): 4e-4 after 100 of 400 epochs, then a cosine down to 1e-5; no dropout of tokens."""
    recipe = load_recipe(GeneratorRecipe, "imagenet_256/generator_random_order", {})
    assert recipe.model["token_dropout"] == 0
    config, rates = recipe.train, {}
    start = (config.warmup_images - config.batch_size) / config.images
    for epoch in (50, 100, 250, 400):
        seen = epoch * 1_281_167 - config.batch_size
        decayed = max(0.0, (seen / config.images - start) / (1 - start))
        rates[epoch] = config.learning_rate * learning_rate_factor(config, decayed, seen)
    assert rates == pytest.approx({50: 2e-4, 100: 4e-4, 250: 2.05e-4, 400: 1e-5}, rel=1e-4)


def test_groups_decay_matrices_only_and_keep_their_own_rate():
    config = TrainConfig(learning_rate=1e-3, weight_decay=0.1)
    layer = nn.Linear(3, 2)
    matrices, vectors = network_groups(list(layer.parameters()), config)
    assert [id(p) for p in matrices["params"]] == [id(layer.weight)]
    assert [id(p) for p in vectors["params"]] == [id(layer.bias)]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    codebook = parameter_group("codebook", [layer.weight], config, lr=0.02)
    assert (codebook["lr"], codebook["scheduled"], codebook["clip"]) == (0.02, False, "codebook")
    assert matrices["scheduled"]
    assert matrices["clip"] == vectors["clip"] == parameter_group("codebook", [], config)["clip"] == "network"
