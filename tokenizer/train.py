"""Trains the tokenizer (stage one).

    wvq train-tokenizer --config configs/openmoji_32/tokenizer.yaml --out runs/tokenizer
    accelerate launch --num_processes 8 --mixed_precision bf16 -m wvq train-tokenizer --config ...

A run writes into --out: the tokenizer (config.json, model.safetensors, preprocessor_config.json), recipe.yaml,
result.json, and training/ with log.jsonl, TensorBoard files, reconstruction sheets and checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import nn

from wvq.data import ImageDataset, load_images
from wvq.errors import ConfigError
from wvq.images import image_grid
from wvq.optimization import network_groups, parameter_group
from wvq.outputs import TRAINING, start_stage, write_json
from wvq.recipes import TokenizerRecipe, TrainConfig
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.processing import ImageProcessor
from wvq.training import Trainer, build_accelerator
from wvq.unreadable import Reading


class TokenizerTask:
    """What the training loop needs to know of the tokenizer."""

    name = "tokenizer"

    def __init__(self, loss: ReconstructionLoss, validation: ImageDataset, config: TrainConfig):
        self.reconstruction_loss, self.validation, self.config = loss, validation, config

    def parameter_groups(self, model: WassersteinVQModel) -> list[dict]:
        codebook = model.codebook_parameters()
        own = {id(p) for p in codebook}
        network = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        groups = network_groups(network, self.config)
        if codebook:
            groups.append(parameter_group("codebook", codebook, self.config, lr=self.config.codebook_learning_rate))
        return groups

    def loss(self, model: nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pixel_values = batch["pixel_values"]
        output = model(pixel_values, update_statistics=True)
        loss, terms = self.reconstruction_loss(output.reconstruction, pixel_values)
        return loss + output.quantizer_loss, {**terms, **output.losses, **output.statistics}

    def evaluate(self, model: WassersteinVQModel, accelerator: Accelerator) -> dict[str, float]:
        return evaluate_tokenizer(model, self.validation, accelerator=accelerator, progress=True)

    def picture(self, model: WassersteinVQModel) -> Image.Image:
        return reconstruction_sheet(model, self.validation)

    def training_state(self, model: WassersteinVQModel) -> dict:
        return model.quantizer.training_state()

    def load_training_state(self, model: WassersteinVQModel, state: dict, device: torch.device) -> None:
        model.quantizer.load_training_state(state, device)


@torch.no_grad()
def reconstruction_sheet(model: WassersteinVQModel, dataset: ImageDataset, count: int = 16) -> Image.Image:
    """Rows of originals, each with the row of their reconstructions below; pictures are spread over the set."""
    count = min(count, len(dataset))
    spread = [i * len(dataset) // count for i in range(count)]
    if not (items := list(Reading(dataset, spread))):
        items = list(Reading(dataset, limit=count))  # none of those can be read
    originals = torch.stack([item["pixel_values"] for item in items])
    reconstructions = model.decode(model.encode(originals.to(model.device)).quantized).cpu()
    columns = min(len(originals), 8)
    rows = [
        part for pair in zip(originals.split(columns), reconstructions.split(columns), strict=True) for part in pair
    ]
    return image_grid(torch.cat(rows), columns=columns, scale=max(1, 96 // model.config.image_size))


def train_tokenizer(recipe: TokenizerRecipe, resume: bool = False) -> dict:
    """Train a tokenizer as the recipe says and save it in ``recipe.out``.

    Returns:
        Held-out figures and the run's counts (see :meth:`Trainer.run`), as saved in ``result.json``.

    Raises:
        ConfigError, DataError, CheckpointError, DownloadError: bad settings, data or folder, before training starts.
    """
    recipe.train.check()
    loss = ReconstructionLoss(recipe.loss)
    for given in ("image_size", "class_names"):
        if given in recipe.model:
            raise ConfigError(f"model.{given} comes from the data; set data.image_size or data.classes instead")
    images = load_images(recipe.data)
    config = WassersteinVQConfig(
        **recipe.model, image_size=recipe.data.image_size, class_names=list(images.class_names)
    )
    accelerator = build_accelerator(recipe.train)
    out = Path(recipe.out)
    with accelerator.main_process_first():
        folder = start_stage(out, recipe, resume) if accelerator.is_main_process else out / TRAINING
    set_seed(recipe.train.seed)
    model = WassersteinVQModel(config)
    task = TokenizerTask(loss.to(accelerator.device), images.validation, recipe.train)
    trainer = Trainer(task, model, images.train, recipe.train, folder, accelerator)
    result = trainer.run(resume=resume)
    if accelerator.is_main_process:
        trainer.averaged_model.save_pretrained(out)
        ImageProcessor(size=config.image_size).save_pretrained(out)
        result["data"] = images.source
        result["parameters"] = sum(p.numel() for p in model.parameters())
        write_json(out / "result.json", result)
    accelerator.wait_for_everyone()
    return result
