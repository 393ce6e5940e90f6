"""Optimiser groups, the learning-rate schedule, and a step of one optimiser."""

import itertools
import math

import pytest
import torch
from torch import nn

from wvq.generator.recipes import GeneratorRecipe
from wvq.settings.parser import load_recipe
from wvq.settings.train import TrainConfig
from wvq.training.optimization import (
    ModuleOptimizer,
    build_optimizer,
    learning_rate_factor,
    network_groups,
    parameter_group,
)

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


def test_a_rate_of_its_own_may_follow_the_schedule_and_is_clipped_alone():
    config = TrainConfig(learning_rate=1e-3)
    group = parameter_group("discriminator", [], config, lr=4e-4, scheduled=True, betas=(0.5, 0.9))
    assert (group["lr"], group["peak_lr"], group["scheduled"], group["clip"]) == (4e-4, 4e-4, True, "discriminator")
    assert group["betas"] == (0.5, 0.9)
    assert parameter_group("matrices", [], config)["betas"] == (config.beta1, config.beta2)


# ---- a step


@pytest.fixture
def optimizer():
    """Of a layer whose bias has a constant rate of its own."""
    config = TrainConfig(images=80, batch_size=8, learning_rate=0.1, schedule="linear", final_learning_rate=0.0)
    layer = nn.Linear(3, 2)
    groups = [
        parameter_group("matrices", [layer.weight], config),
        parameter_group("codebook", [layer.bias], config, lr=0.5),
    ]
    return ModuleOptimizer(layer, build_optimizer(groups), config, "skipped_steps")


def backward(optimizer, scale=1.0):
    layer = optimizer.module
    (scale * (10 * layer.weight.sum() + 20 * layer.bias.sum())).backward()


def test_a_step_clips_each_group_by_itself_and_drops_the_gradients(optimizer):
    clipped = []
    optimizer.optimizer.register_step_pre_hook(
        lambda *_: clipped.extend(p.grad.norm().item() for p in optimizer.module.parameters())
    )
    assert not optimizer.has_gradients
    backward(optimizer)
    assert optimizer.has_gradients
    norms = optimizer.step(None, progress=0.0, images_seen=0)
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(
        {"gradient_norm_network": 10 * math.sqrt(6), "gradient_norm_codebook": 20 * math.sqrt(2)}
    )
    assert clipped == pytest.approx([1.0, 1.0])
    assert not optimizer.has_gradients


def test_a_constant_rate_stays_while_the_others_follow_the_schedule(optimizer):
    for progress, rate in ((0.0, 0.1), (0.5, 0.05)):
        backward(optimizer)
        optimizer.step(None, progress, images_seen=8)
        rates = {"learning_rate_matrices": rate, "learning_rate_codebook": 0.5}
        assert optimizer.learning_rates() == pytest.approx(rates)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out_and_counted(optimizer, scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0) if scaled else None
    weights = [optimizer.module.weight.detach().clone()]
    for scale in (1.0, math.inf, 1.0):
        backward(optimizer, scale * (scaler.scale(torch.ones(())).item() if scaled else 1.0))
        optimizer.step(scaler, progress=0.0, images_seen=0)
        if scaled:
            scaler.update()
        weights.append(optimizer.module.weight.detach().clone())
    assert [torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [False, True, False]
    assert optimizer.skipped_steps() == {"skipped_steps": 1}
