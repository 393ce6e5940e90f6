"""GeneratorTask, the generator's side of the training loop: its loss, its held-out figures and its sample sheets."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset

from wvq.data.sheets import image_grid
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.draws import uniforms
from wvq.generator.base.interface import CodeGenerator, GeneratorOutput
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.conditioned_codes import ConditionedCodes
from wvq.generator.next_code.captured import using
from wvq.generator.recipes import JOINT_DROPOUT, ConditionConfig, ObjectiveConfig
from wvq.generator.sampling import sample_codes
from wvq.generator.text.encoder import TextEncoder
from wvq.hardware import send
from wvq.settings.size import height_width
from wvq.settings.train import TrainConfig
from wvq.training.optimization import network_groups
from wvq.training.task import Batch, StepLoss, Task

EVALUATED = 64  # held-out pictures at once
ON_SHEET, SHEET_SETTINGS = 24, SamplingSettings(guidance_scale=2.0)


class Decoder(Protocol):
    """The tokenizer, as a sample sheet needs it."""

    @property
    def device(self) -> torch.device:
        """Where codes are decoded."""

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of codes."""


class GeneratorTask(Task[CodeGenerator]):
    """The generator's side of the training loop.

    Args:
        tokenizer: draws the sample sheets.
        validation: held-out pictures.
        condition, objective, config: settings of the recipe.
        reference: figures of the data that go beside every evaluation.
        text_encoder: encodes captions of batches that hold no features of them; on the device of the model.
    """

    name = "generator"

    def __init__(
        self,
        tokenizer: Decoder,
        validation: ConditionedCodes,
        condition: ConditionConfig,
        objective: ObjectiveConfig,
        config: TrainConfig,
        reference: dict[str, float],
        text_encoder: TextEncoder | None = None,
    ):
        self.tokenizer, self.validation = tokenizer, validation
        self.condition, self.objective, self.config, self.reference = condition, objective, config, reference
        self.joint_dropout = JOINT_DROPOUT if condition.joint_dropout is None else condition.joint_dropout
        self.text_encoder = text_encoder

    def parameter_groups(self, model: CodeGenerator) -> list[dict[str, Any]]:
        return network_groups(list(model.parameters()), self.config)

    def loss(self, model: nn.Module, batch: Batch, images_seen: int, progress: float) -> StepLoss:
        batch = self._with_features(batch, batch["codes"].device)
        given = Condition(batch.get("class_labels"), batch.get("text_features"), batch.get("text_mask"))
        condition = given.drop(self.condition.class_dropout, self.condition.text_dropout, self.joint_dropout)
        codes, share = batch["codes"], self.objective.random_share(progress)
        order = send(random_order(len(codes), codes[0].numel(), share), codes.device) if share else None
        options = {} if order is None else {"order": order}
        smoothing = self.objective.label_smoothing
        output = model(codes, **condition.named(), label_smoothing=smoothing, return_logits=False, **options)
        return StepLoss(output.loss, {})

    @torch.no_grad()
    def _with_features(self, batch: Batch, device: torch.device) -> Batch:
        """The batch on the device, its captions encoded."""
        tensors = {name: value.to(device) for name, value in batch.items() if name != "caption"}
        if self.text_encoder is not None and "caption" in batch:
            # In float32, as features that are kept are made; texts that are cut were reported before the first step.
            with torch.autocast(device.type, enabled=False), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tensors["text_features"], tensors["text_mask"] = self.text_encoder.encode(batch["caption"])
        return tensors

    @torch.no_grad()
    def evaluate(self, model: CodeGenerator, accelerator: Accelerator) -> dict[str, Any]:
        """Mean loss (nats a code) and accuracy over the held-out pictures' first crops, with all conditions given.

        Also both position by position, in the flat order of the codes' layout, and what the codes of a picture cost in
        bits a pixel. Of codes of several scales also the mean loss of each, ``loss_per_scale``. Where training takes
        random orders, also the mean loss in them, ``loss_random_order``: one order a picture, always the same.
        """
        share = Subset(
            self.validation, range(accelerator.process_index, len(self.validation), accelerator.num_processes)
        )
        header = self.validation.codes.header
        length = header.sequence_length
        any_order = self.objective.random_order > 0
        sums = torch.zeros(3 + any_order, length, dtype=torch.float64, device=model.device)
        batches = DataLoader(share, batch_size=EVALUATED, collate_fn=self.validation.collate_fn)
        numbers = iter(share.indices)
        for batch in self.stop.until_set(batches):
            batch = self._with_features(batch, model.device)
            codes = batch["codes"].flatten(1)
            rows = [*_losses_and_hits(model(**batch), codes), torch.ones_like(codes)]
            if any_order:
                order = uniforms([next(numbers) for _ in codes], length).argsort(1).to(codes.device)
                rows.append(_losses_and_hits(model(**batch, order=order), codes.gather(1, order))[0])
            sums += torch.stack([row.double().sum(0) for row in rows])
        losses, hits, counts, *in_random_order = accelerator.reduce(sums, "sum").cpu()
        loss = float(losses.sum() / counts.sum())
        per_position = losses / counts
        scales = per_position.split([math.prod(shape) for shape in header.layout["shapes"]])
        return {
            "loss": loss,
            **({"loss_per_scale": [round(float(one.mean()), 4) for one in scales]} if scales[1:] else {}),
            **({"loss_random_order": float(in_random_order[0].sum() / counts.sum())} if any_order else {}),
            "accuracy": float(hits.sum() / counts.sum()),
            "bits_per_pixel": loss * length / math.log(2) / math.prod(height_width(header.image_size)),
            "loss_per_position": [round(value, 4) for value in per_position.tolist()],
            "accuracy_per_position": [round(value, 4) for value in (hits / counts).tolist()],
            **self.reference,
        }

    @torch.no_grad()
    def picture(self, model: CodeGenerator) -> Image.Image:
        """Samples under the conditions of the first held-out pictures (spread over the set)."""
        count = min(ON_SHEET, len(self.validation))
        batch = self.validation.__getitems__([i * len(self.validation) // count for i in range(count)])
        batch = self._with_features(batch, model.device)
        batch.pop("codes")
        with using("loop"):  # recorded steps would keep memory that training needs
            codes = sample_codes(model, Condition(**batch), list(range(count)), SHEET_SETTINGS)
        pictures = self.tokenizer.decode_codes(codes.to(self.tokenizer.device)).cpu()
        return image_grid(pictures, columns=8, scale=max(1, 96 // pictures.shape[-1]))

    def save(self, model: CodeGenerator, folder: Path) -> None:
        model.config.averaging_decay = self.config.ema_decay
        model.save_pretrained(folder)


def _losses_and_hits(output: GeneratorOutput, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies (B, T) of codes (B, T), and where they are the likeliest ones."""
    logits = output.logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
    return losses, logits.argmax(-1) == codes


def random_order(count: int, length: int, share: float) -> torch.Tensor:
    """Orders (count, length) of positions: a random one for that share of the rows, and 0, 1, 2, ... for the others."""
    orders = torch.rand(count, length).argsort(1)
    return torch.where(torch.rand(count, 1) < share, orders, torch.arange(length))
