"""Steps of training that benchmarks/gpu_training.py measures: the Trainer's, and loops written by hand beside it."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from benchmarks.cost import random_networks
from benchmarks.generator import Codes
from benchmarks.gpu_steps import Step
from benchmarks.sampling import CLASSES, build_llama
from benchmarks.training import Noise
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, ObjectiveConfig
from wvq.generator.task import GeneratorTask
from wvq.settings.parser import load_recipe
from wvq.settings.train import TrainConfig
from wvq.tokenizer.adversarial import Adversary, build_adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import FeatureDistance, ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import TokenizerRecipe
from wvq.tokenizer.task import TokenizerTask
from wvq.training.acceleration import build_accelerator, enable_checkpointing
from wvq.training.task import Task
from wvq.training.trainer import Trainer

DECAY = 0.9999  # of the average, as the recipes have it
WORKERS = 2  # loader processes for pictures, where there is a GPU to keep at work
PICTURES = 64  # that a tokenizer sees
TINY_GENERATOR = {"num_layers": 2, "hidden_size": 64, "num_heads": 2, "grid": [4, 4], "num_codes": 256}
TINY_TOKENIZER = {"base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1, "num_codes": 64}


def trainer_step(task: Task, model: nn.Module, data: torch.utils.data.Dataset) -> Step:
    """A step of the Trainer, with what its loop keeps for the log."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(task, model, data, task.config, Path(folder), build_accelerator(task.config))
    batches = iter(trainer._loader())
    trainer.progress.start_clock()
    return lambda: trainer.window.add(trainer._step(batches))


class Hand:
    """What a loop by hand has beside its loss: the average, clipping, and a fused AdamW, all on the device."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]]):
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.groups = [[p for p in group["params"] if p.requires_grad] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def update(self) -> None:
        """Clip, step, and move the average."""
        for parameters in self.groups:
            nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - DECAY)


# ---- the generator


def build_generator(size: str, device: str, tiny: bool, **fields: Any) -> ImageCodeTransformer:
    """A generator of a named size, without dropout if none is given, made on the device."""
    sizes = TINY_GENERATOR if tiny else {"size": size}
    fields = {"dropout": 0.0, "token_dropout": 0.0, "head": "normal", **fields}
    torch.manual_seed(0)
    with torch.device(device):
        return ImageCodeTransformer(ImageCodeTransformerConfig(**sizes, num_classes=CLASSES, **fields))


def our_generator_step(model: ImageCodeTransformer, batch: int, device: str, compiled: bool, again: bool) -> Step:
    """A step of the Trainer, as `wvq train-generator` runs it; a batch of codes is there without loader processes."""
    loop = {"batch_size": batch, "learning_rate": 1e-4, "mixed_precision": "bf16", "ema_decay": DECAY}
    config = TrainConfig(**loop, compile=compiled, gradient_checkpointing=again)
    task = GeneratorTask(None, None, ConditionConfig(), ObjectiveConfig(), config, {})  # type: ignore[arg-type]
    return trainer_step(task, model, Codes(1024, model.config.sequence_length, model.config.num_codes))


def hand_step(model: nn.Module, loss: Callable[[], torch.Tensor], device: str) -> Step:
    """A step by hand of a model with one group of parameters."""
    hand = Hand(model, [{"params": list(model.parameters()), "lr": 1e-4}])

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            value = loss()
        value.backward()
        hand.update()

    return step


def hand_generator_step(model: ImageCodeTransformer, batch: int, device: str, compiled: bool, again: bool) -> Step:
    """A step by hand over the same module."""
    codes = torch.randint(model.config.num_codes, (batch, model.config.sequence_length), device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    if again:
        enable_checkpointing(model)
    step = hand_step(model.train(), lambda: model(codes, labels).loss, device)
    if compiled:
        model.compile()
    return step


def llama_step(like: ImageCodeTransformer, batch: int, device: str, compiled: bool, again: bool) -> Step:
    """A step by hand over a Llama of the same sizes; the last code is a target only, as in ours."""
    with torch.device(device):
        model = build_llama(like).train()
        tokens = torch.randint(like.config.num_codes, (batch, like.config.sequence_length + 1))
    if again:
        enable_checkpointing(model)

    def loss() -> torch.Tensor:
        logits = model(tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    step = hand_step(model, loss, device)
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    return step


# ---- the tokenizer


class VGGLayers(nn.Module):
    """Feature maps of VGG-16 at the five depths that LPIPS compares; with random weights, which cost as much."""

    def __init__(self) -> None:
        super().__init__()
        layers = list(make_layers(cfgs["D"]))  # without the classifier
        ends = (4, 9, 16, 23, 30)
        self.slices = nn.ModuleList(nn.Sequential(*layers[a:b]) for a, b in zip((0, *ends), ends, strict=False))

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) -> five feature maps."""
        return list(itertools.accumulate(self.slices, lambda x, layers: layers(x), initial=pictures))[1:]


def tokenizer_parts(
    name: str, device: str, tiny: bool, batch: int, compiled: bool
) -> tuple[TokenizerTask, WassersteinVQModel]:
    """Task and model of a recipe for ImageNet, on the device; networks that are downloads have random weights."""
    recipe = load_recipe(TokenizerRecipe, f"imagenet_256/{name}")
    size = 32 if tiny else 256
    fields = recipe.model | {"image_size": size} | (TINY_TOKENIZER if tiny else {})
    recipe.train.batch_size, recipe.train.compile = batch, compiled
    recipe.train.num_workers = WORKERS if device != "cpu" else 0
    judge = recipe.discriminator
    judge.start_images = judge.generator_start_images = judge.ramp_images = 0
    if tiny and judge.network != "none":
        judge.network, judge.base_channels, judge.num_layers = "patchgan", 8, 1
    perceptual, recipe.loss.perceptual_weight = recipe.loss.perceptual_weight, 0.0
    torch.manual_seed(0)
    with random_networks(recipe):
        adversary = build_adversary(judge, size)
    loss = ReconstructionLoss(recipe.loss)
    if perceptual:
        with torch.device(device):
            recipe.loss.perceptual_weight, layers = perceptual, VGGLayers()
        loss.config, loss.perceptual = recipe.loss, FeatureDistance(layers)
    with torch.device(device):
        model = WassersteinVQModel(WassersteinVQConfig(**fields))
    if adversary is not None:
        adversary.to(device)
    return TokenizerTask(loss.to(device), None, recipe.train, adversary), model  # type: ignore[arg-type]


def our_tokenizer_step(task: TokenizerTask, model: WassersteinVQModel, device: str) -> Step:
    """A step of the Trainer, as `wvq train-tokenizer` runs it."""
    return trainer_step(task, model, Noise(model.config.image_size, PICTURES))


def hand_tokenizer_step(task: TokenizerTask, model: WassersteinVQModel, device: str) -> Step:
    """A step by hand over the same networks, in channels_last; the adaptive weight as Esser et al. 2021 take it."""
    loss_of, adversary, config = task.reconstruction_loss, task.adversary, task.config
    for module in (model, loss_of, *([adversary] if adversary else [])):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    codebook = {id(p) for p in model.codebook_parameters()}
    network = [p for p in model.parameters() if id(p) not in codebook]
    hand = Hand(model, [{"params": network, "lr": 1e-4}, {"params": model.codebook_parameters(), "lr": 0.02}])
    judge = Judge(adversary) if adversary is not None else None
    if config.compile:  # not the perceptual network: the adaptive weight goes back through it twice
        model.encoder.compile()
        model.decoder.compile()
    size = model.config.image_size
    pictures = torch.rand(config.batch_size, 3, size, size, device=device) * 2 - 1
    pictures = pictures.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            output = model(pictures, update_statistics=True)
            loss, _ = loss_of(output.reconstruction, pictures)
            if judge is not None:
                loss = loss + judge.weighted(loss, output.reconstruction, model.last_layer)
        (loss + output.quantizer_loss).backward()
        hand.update()
        if judge is not None:
            judge.train(pictures, output.reconstruction.detach(), device)

    return step


class Judge:
    """The discriminator's side of a step by hand."""

    def __init__(self, adversary: Adversary):
        self.adversary = adversary
        self.parameters = [p for p in adversary.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, betas=(0.5, 0.9), fused=True)

    def weighted(self, loss: torch.Tensor, reconstruction: torch.Tensor, layer: nn.Parameter) -> torch.Tensor:
        """The adversarial loss times its adaptive weight."""
        verdict = self.adversary.generator_loss(reconstruction)
        (of_loss,) = torch.autograd.grad(loss, layer, retain_graph=True)
        (of_verdict,) = torch.autograd.grad(verdict, layer, retain_graph=True)
        ratio = (of_loss.norm() / (of_verdict.norm() + 1e-4)).clamp(0, 1e4).detach()
        return self.adversary.config.weight * ratio * verdict

    def train(self, real: torch.Tensor, fake: torch.Tensor, device: str) -> None:
        """One step of the discriminator."""
        self.optimizer.zero_grad(set_to_none=True)  # the generator's loss has left gradients there
        self.adversary.begin_step(1)
        with torch.autocast(device, torch.bfloat16):
            loss, _ = self.adversary(real, fake)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
