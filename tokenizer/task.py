"""TokenizerTask, the tokenizer's side of the training loop: its losses, its held-out figures and its sample sheets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import nn

from wvq.data.sheets import image_grid
from wvq.data.stream import Pictures, numbered_pictures
from wvq.data.unreadable import Reading
from wvq.settings.size import height_width
from wvq.tokenizer.adversarial import Adversary, combined_gradient
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.processing import ImageProcessor
from wvq.tokenizer.recipes import TokenizerTrainConfig
from wvq.tokenizer.usage import WARM_SHARE, CodebookUsage
from wvq.training.optimization import network_groups, parameter_group
from wvq.training.task import Batch, StepLoss, Task


class TokenizerTask(Task[WassersteinVQModel]):
    """The tokenizer's side of the training loop.

    Args:
        loss: reconstruction loss, on the device of the run.
        validation: held-out pictures.
        config: the loop's settings.
        adversary: discriminator with its loss; None trains without.
    """

    name = "tokenizer"
    adversary: Adversary | None

    def __init__(
        self,
        loss: ReconstructionLoss,
        validation: Pictures,
        config: TokenizerTrainConfig,
        adversary: Adversary | None = None,
    ):
        self.reconstruction_loss, self.validation, self.config = loss, validation, config
        self.adversary = adversary
        if config.channels_last:
            loss.to(memory_format=torch.channels_last)
        self.usage = CodebookUsage()

    def parameter_groups(self, model: WassersteinVQModel) -> list[dict[str, Any]]:
        config = self.config
        own = {"codebook": (model.codebook_parameters(), config.codebook_learning_rate)}
        if config.scale_conv_learning_rate is not None:
            own["scale_convs"] = (model.quantizer.scale_conv_parameters(), config.scale_conv_learning_rate)
        apart = {id(p) for params, _ in own.values() for p in params}
        groups = network_groups([p for p in model.parameters() if p.requires_grad and id(p) not in apart], config)
        for name, (params, lr) in own.items():
            if trained := [p for p in params if p.requires_grad]:
                follows = config.codebook_schedule == "network"
                groups.append(parameter_group(name, trained, config, lr=lr, scheduled=follows))
        return groups

    def adversary_groups(self) -> list[dict[str, Any]]:
        assert self.adversary is not None
        settings = self.adversary.config
        group = parameter_group(
            "discriminator",
            [p for p in self.adversary.parameters() if p.requires_grad],
            self.config,
            weight_decay=settings.weight_decay,
            lr=settings.learning_rate or self.config.learning_rate,
            scheduled=True,
            betas=(settings.beta1, settings.beta2),
        )
        return [group]

    def compiled_parts(self, model: WassersteinVQModel) -> list[nn.Module]:
        # The quantizer's search is compiled already, or breaks the graph. A compiled discriminator would take the
        # gradients of its weights too where those of the pictures are asked for, and no second derivative.
        perceptual = self.reconstruction_loss.perceptual
        return [model.encoder, model.decoder, *([] if perceptual is None else [perceptual])]

    def begin_step(self, model: WassersteinVQModel, parts: int) -> None:
        model.quantizer.begin_step(parts)
        if self.adversary is not None:
            self.adversary.begin_step(parts)

    def loss(self, model: nn.Module, batch: Batch, images_seen: int, progress: float) -> StepLoss:
        pixel_values, raw = batch["pixel_values"], unwrapped(model)
        raw.quantizer.scale_alignment(1 + (self.config.final_alignment - 1) * progress)
        output = model(pixel_values, update_statistics=True)
        self.usage.update(output.codes, raw.config.num_codes, raw.config.num_groups)
        terms = {**output.losses, **output.statistics}
        model_loss = output.quantizer_loss
        if (weight := self.reconstruction_loss.config.feature_weight) and output.feature_error is not None:
            model_loss = model_loss + weight * output.feature_error
            terms["feature"] = output.feature_error.detach()
        adversary = self.adversary
        if adversary is None or not adversary.trains(images_seen):
            loss, pixel_terms = self.reconstruction_loss(output.reconstruction, pixel_values)
            return StepLoss(loss + model_loss, {**pixel_terms, **terms})
        fake = output.reconstruction.detach()
        step = images_seen // self.config.batch_size
        penalize = adversary.config.r1_weight > 0 and step % adversary.config.r1_interval == 0
        weight = adversary.weight(images_seen)
        loss, pixel_terms = self._judged_loss(adversary, weight, raw.last_layer, output.reconstruction, pixel_values)
        return StepLoss(
            loss + model_loss,
            {**pixel_terms, **terms},
            lambda wrapped: wrapped(pixel_values, fake, penalize),
        )

    def _judged_loss(
        self,
        adversary: Adversary,
        weight: float,
        layer: nn.Parameter,
        reconstruction: torch.Tensor,
        pixel_values: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Reconstruction and ``weight`` times adversarial loss, with the adaptive ratio measured at ``layer``."""
        reconstruction = reconstruction.float()  # so that a gradient is scaled before it meets float16
        if not weight:
            loss, terms = self.reconstruction_loss(reconstruction, pixel_values)
            return loss, {**terms, "adversarial_weight": loss.new_zeros(())}
        pictures = reconstruction.detach().requires_grad_()
        others, terms = self.reconstruction_loss(pictures, pixel_values)
        adversarial = adversary.generator_loss(pictures)
        max_ratio = adversary.config.max_adaptive_weight if adversary.config.adaptive_weight else None
        gradient, ratio = combined_gradient(reconstruction, others, adversarial, layer, pictures, weight, max_ratio)
        value = others.detach() + weight * ratio * adversarial.detach()
        carrier = (reconstruction * gradient).sum()  # has the combined gradient
        terms |= {"adversarial": adversarial.detach(), "adversarial_weight": weight * ratio}
        return carrier + (value - carrier.detach()), terms

    def report(self, accelerator: Accelerator, images_seen: int) -> tuple[dict[str, float], str | None]:
        warm = max(self.config.warmup_images, WARM_SHARE * self.config.images)
        return self.usage.report(accelerator, images_seen, warm)

    def evaluate(self, model: WassersteinVQModel, accelerator: Accelerator) -> dict[str, Any]:
        workers = self.config.num_workers
        return evaluate_tokenizer(model, self.validation, progress=True, stop=self.stop, num_workers=workers)

    def picture(self, model: WassersteinVQModel) -> Image.Image:
        return reconstruction_sheet(model, self.validation)

    def save(self, model: WassersteinVQModel, folder: Path) -> None:
        model.config.averaging_decay = self.config.ema_decay
        model.save_pretrained(folder)
        ImageProcessor.of_tokenizer(model.config).save_pretrained(folder)

    def training_state(self, model: WassersteinVQModel) -> dict[str, Any]:
        return {"quantizer": model.quantizer.training_state(), "usage": self.usage.state_dict()}

    def load_training_state(self, model: WassersteinVQModel, state: dict[str, Any], device: torch.device) -> None:
        model.quantizer.load_training_state(state["quantizer"], device)
        self.usage.load_state_dict(state["usage"], device)


def unwrapped(model: nn.Module) -> WassersteinVQModel:
    """The tokenizer behind DistributedDataParallel or torch.compile."""
    return extract_model_from_parallel(model)


@torch.no_grad()
def reconstruction_sheet(model: WassersteinVQModel, pictures: Pictures, count: int = 16) -> Image.Image:
    """Rows of originals, each with the row of their reconstructions below; pictures are spread over the set, and those
    of a stream are its first.

    Of a tokenizer with several scales there is a row after each scale, from the coarsest alone to all of them.
    """
    dataset = numbered_pictures(pictures, count)
    count = min(count, len(dataset))
    spread = [i * len(dataset) // count for i in range(count)]
    if not (items := list(Reading(dataset, spread))):
        items = list(Reading(dataset, limit=count))  # none of those can be read
    originals = torch.stack([item["pixel_values"] for item in items])
    reconstructions = model.decode_scales(model.encode(originals.to(model.device)).codes).cpu()  # B S C H W
    columns = min(len(originals), 8)
    versions = [pictures.split(columns) for pictures in (originals, *reconstructions.unbind(1))]
    rows = [part for parts in zip(*versions, strict=True) for part in parts]
    return image_grid(torch.cat(rows), columns=columns, scale=max(1, 96 // max(height_width(model.config.image_size))))
