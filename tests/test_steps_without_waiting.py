"""A whole training step of either stage, with optimisers and average, never makes the processor wait for a GPU."""

import itertools

import pytest
import torch
from torch import nn

from benchmarks.syncs import counting_syncs
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, ObjectiveConfig
from wvq.generator.task import GeneratorTask
from wvq.settings.train import TrainConfig
from wvq.tokenizer.adversarial import Adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import FeatureDistance, ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers.registry import QUANTIZERS
from wvq.tokenizer.recipes import DiscriminatorConfig, LossConfig, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask
from wvq.training.acceleration import build_accelerator
from wvq.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
LOOP = {"images": 6400, "batch_size": 4, "gradient_accumulation_steps": 2, "ema_decay": 0.9, "warmup_images": 8}
PICTURES = [{"pixel_values": torch.rand(2, 3, 16, 16)} for _ in range(4)]
CPU_ALONE = {"online": 1, "wasserstein": 2}  # a list, and eigenvalues, in branches that no other device takes


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where the steps run, on a machine with a GPU too."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(request.param == "cpu"))
    return request.param


def waits(task, model, batches, folder, device) -> list[str]:
    """What waits in the third step: the first ones make tables that stay."""
    accelerator = build_accelerator(task.config)
    assert accelerator.device.type == device
    if device == "cuda":
        batches = [{name: value.pin_memory() for name, value in batch.items()} for batch in batches]
    batches = itertools.cycle(batches)
    trainer = Trainer(task, model, batches, task.config, folder, accelerator)
    for _ in range(2):
        trainer.window.add(trainer._step(batches))
    with counting_syncs(device) as places:
        trainer.window.add(trainer._step(batches))
    assert trainer.window.collect(trainer.accelerator)["loss"] > 0
    return places


def build_tokenizer(name="sliced", **fields) -> WassersteinVQModel:
    shape = {"num_codes": 48, "levels": [3, 4, 2, 2]} if name == "fsq" else {"num_codes": 16}
    sizes = {"image_size": 16, "patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1}
    return WassersteinVQModel(WassersteinVQConfig(quantizer=name, code_dim=4, **sizes, **shape, **fields))


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_tokenizer_training(name, device, tmp_path):
    config = TokenizerTrainConfig(codebook_learning_rate=0.02, channels_last=True, **LOOP)
    task = TokenizerTask(ReconstructionLoss(LossConfig()), None, config)
    expected = CPU_ALONE.get(name, 0) if device == "cpu" else 0
    found = waits(task, build_tokenizer(name), PICTURES, tmp_path, device)
    assert len(found) == expected, found


def test_adversarial_training(device, tmp_path):
    regularisers = {"lecam_weight": 0.1, "r1_weight": 0.1, "r1_interval": 1, "consistency_weight": 0.1}
    adversary = Adversary(DiscriminatorConfig("patchgan", base_channels=8, num_layers=1, augment=True, **regularisers))
    network = nn.Conv2d(3, 4, 3)
    loss = ReconstructionLoss(LossConfig(l1_weight=0.5))
    loss.perceptual = FeatureDistance(network, lambda network, pictures: [network(pictures)])
    task = TokenizerTask(loss.to(device), None, TokenizerTrainConfig(**LOOP), adversary)
    assert waits(task, build_tokenizer(), PICTURES, tmp_path, device) == []


@pytest.mark.parametrize("condition", ["class", "text"])
def test_generator_training(condition, device, tmp_path):
    sizes = {"num_codes": 32, "grid": [4, 4], "hidden_size": 32, "num_layers": 2, "num_heads": 2, "drop_path": 0.1}
    batch = {"codes": torch.randint(32, (2, 16)), "class_labels": torch.tensor([0, 2])}
    fields = {"num_classes": 3}
    if condition == "text":
        fields |= {"text_dim": 6, "text_length": 4, "target_positions": True, "condition_bias": True}
        batch |= {"text_features": torch.rand(2, 4, 6), "text_mask": torch.ones(2, 4, dtype=torch.bool)}
    objective = ObjectiveConfig(label_smoothing=0.1, random_order=1.0 if condition == "text" else 0.0)
    task = GeneratorTask(None, None, ConditionConfig(text=condition == "text"), objective, TrainConfig(**LOOP), {})
    model = ImageCodeTransformer(ImageCodeTransformerConfig(**sizes, **fields))
    assert waits(task, model, [batch] * 4, tmp_path, device) == []
