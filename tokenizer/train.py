"""Trains the tokenizer (stage one).

    wvq train-tokenizer --config configs/openmoji_32/tokenizer.yaml --out runs/tokenizer
    accelerate launch --num_processes 8 --mixed_precision bf16 -m wvq train-tokenizer --config ...

A run writes into --out: the tokenizer (config.json, model.safetensors, preprocessor_config.json), recipe.yaml,
result.json, and training/ with log.jsonl, TensorBoard files, reconstruction sheets and checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import nn

from wvq.data.dataset import ImageDataset, load_images
from wvq.data.sheets import image_grid
from wvq.data.unreadable import Reading
from wvq.distributed import decided_by_first_process, wait_for_all
from wvq.errors import ConfigError
from wvq.files.atomic import files_into, write_json
from wvq.files.locks import sole_run
from wvq.files.stage_folder import finished_run, refuse_data_folder, start_stage
from wvq.settings.train import TrainConfig
from wvq.tokenizer.adaptation import build_tokenizer
from wvq.tokenizer.adversarial import Adversary, build_adversary, combined_gradient
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.processing import ImageProcessor
from wvq.tokenizer.recipes import TokenizerRecipe
from wvq.tokenizer.usage import WARM_SHARE, CodebookUsage
from wvq.training.acceleration import build_accelerator
from wvq.training.optimization import network_groups, parameter_group
from wvq.training.task import StepLoss, Task
from wvq.training.trainer import Trainer


class TokenizerTask(Task):
    """What the training loop needs to know of the tokenizer.

    Args:
        loss: reconstruction loss, on the device of the run.
        validation: held-out pictures.
        config: the loop's settings.
        adversary: discriminator with its loss; None trains without.
    """

    name = "tokenizer"

    def __init__(
        self,
        loss: ReconstructionLoss,
        validation: ImageDataset,
        config: TrainConfig,
        adversary: Adversary | None = None,
    ):
        self.reconstruction_loss, self.validation, self.config = loss, validation, config
        self.adversary = adversary
        self.usage = CodebookUsage()

    def parameter_groups(self, model: WassersteinVQModel) -> list[dict]:
        codebook = [p for p in model.codebook_parameters() if p.requires_grad]
        own = {id(p) for p in codebook}
        network = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        groups = network_groups(network, self.config)
        if codebook:
            lr, follows = self.config.codebook_learning_rate, self.config.codebook_schedule == "network"
            groups.append(parameter_group("codebook", codebook, self.config, lr=lr, scheduled=follows))
        return groups

    def adversary_groups(self) -> list[dict]:
        settings = self.adversary.config
        config = replace(self.config, learning_rate=settings.learning_rate or self.config.learning_rate)
        params = [p for p in self.adversary.parameters() if p.requires_grad]
        group = parameter_group("discriminator", params, config, weight_decay=settings.weight_decay)
        return [group | {"clip": "discriminator", "betas": (settings.beta1, settings.beta2)}]

    def compiled_parts(self, model: WassersteinVQModel) -> list[nn.Module]:
        return [model.encoder, model.decoder]  # the quantizer's search is compiled already, or breaks the graph

    def begin_step(self, model: WassersteinVQModel, parts: int) -> None:
        model.quantizer.begin_step(parts)
        if self.adversary is not None:
            self.adversary.begin_step(parts)

    def loss(self, model: nn.Module, batch: dict, images_seen: int, progress: float) -> StepLoss:
        pixel_values, raw = batch["pixel_values"], unwrapped(model)
        raw.quantizer.scale_alignment(1 + (self.config.final_alignment - 1) * progress)
        output = model(pixel_values, update_statistics=True)
        self.usage.update(output.codes, raw.config.num_codes, raw.config.num_groups)
        terms = {**output.losses, **output.statistics}
        adversary = self.adversary
        if adversary is None or not adversary.trains(images_seen):
            loss, pixel_terms = self.reconstruction_loss(output.reconstruction, pixel_values)
            return StepLoss(loss + output.quantizer_loss, {**pixel_terms, **terms})
        fake = output.reconstruction.detach()
        penalize = bool(adversary.config.r1_weight) and self._step(images_seen) % adversary.config.r1_interval == 0
        loss, pixel_terms = self._judged_loss(raw.last_layer, output.reconstruction, pixel_values, images_seen)
        return StepLoss(
            loss + output.quantizer_loss,
            {**pixel_terms, **terms},
            lambda wrapped: wrapped(pixel_values, fake, penalize),
        )

    def _step(self, images_seen: int) -> int:
        return images_seen // self.config.batch_size

    def _judged_loss(
        self, layer: nn.Parameter, reconstruction: torch.Tensor, pixel_values: torch.Tensor, images_seen: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Reconstruction and adversarial loss, with the adaptive weight measured at ``layer``."""
        adversary, weight = self.adversary, self.adversary.weight(images_seen)
        reconstruction = reconstruction.float()  # so that a gradient is scaled before it meets float16
        if not weight:
            loss, terms = self.reconstruction_loss(reconstruction, pixel_values)
            return loss, {**terms, "adversarial_weight": loss.new_zeros(())}
        pictures = reconstruction.detach().requires_grad_()
        others, terms = self.reconstruction_loss(pictures, pixel_values)
        adversarial = adversary.generator_loss(pictures)
        most = adversary.config.max_adaptive_weight if adversary.config.adaptive_weight else None
        gradient, ratio = combined_gradient(reconstruction, others, adversarial, layer, pictures, weight, most)
        value = others.detach() + weight * ratio * adversarial.detach()
        carrier = (reconstruction * gradient).sum()  # has the combined gradient
        terms |= {"adversarial": adversarial.detach(), "adversarial_weight": weight * ratio}
        return carrier + (value - carrier.detach()), terms

    def report(self, accelerator: Accelerator, images_seen: int) -> tuple[dict[str, float], str | None]:
        warm = max(self.config.warmup_images, WARM_SHARE * self.config.images)
        return self.usage.report(accelerator, images_seen, warm)

    def evaluate(self, model: WassersteinVQModel, accelerator: Accelerator) -> dict[str, float]:
        workers = self.config.num_workers
        return evaluate_tokenizer(model, self.validation, progress=True, stop=self.stop, num_workers=workers)

    def picture(self, model: WassersteinVQModel) -> Image.Image:
        return reconstruction_sheet(model, self.validation)

    def training_state(self, model: WassersteinVQModel) -> dict:
        return {"quantizer": model.quantizer.training_state(), "usage": self.usage.state_dict()}

    def load_training_state(self, model: WassersteinVQModel, state: dict, device: torch.device) -> None:
        model.quantizer.load_training_state(state["quantizer"], device)
        self.usage.load_state_dict(state["usage"], device)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module behind DistributedDataParallel or torch.compile."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model)


@torch.no_grad()
def reconstruction_sheet(model: WassersteinVQModel, dataset: ImageDataset, count: int = 16) -> Image.Image:
    """Rows of originals, each with the row of their reconstructions below; pictures are spread over the set.

    Of a tokenizer with several scales there is a row after each scale, from the coarsest alone to all of them.
    """
    count = min(count, len(dataset))
    spread = [i * len(dataset) // count for i in range(count)]
    if not (items := list(Reading(dataset, spread))):
        items = list(Reading(dataset, limit=count))  # none of those can be read
    originals = torch.stack([item["pixel_values"] for item in items])
    reconstructions = model.decode_scales(model.encode(originals.to(model.device)).codes).cpu()  # B S C H W
    columns = min(len(originals), 8)
    versions = [pictures.split(columns) for pictures in (originals, *reconstructions.unbind(1))]
    rows = [part for parts in zip(*versions, strict=True) for part in parts]
    return image_grid(torch.cat(rows), columns=columns, scale=max(1, 96 // model.config.image_size))


def train_tokenizer(recipe: TokenizerRecipe, resume: bool = False) -> dict:
    """Train a tokenizer as the recipe says and save it in ``recipe.out``.

    Returns:
        Held-out figures and the run's counts (see :meth:`Trainer.run`), as saved in ``result.json``.

    Raises:
        ConfigError, DataError, CheckpointError, DownloadError: bad settings, data or folder, before training starts.
    """
    recipe.check()
    refuse_data_folder(recipe.out, recipe.data.path)
    loss = ReconstructionLoss(recipe.loss)
    for given in ("image_size", "class_names"):
        if given in recipe.model:
            raise ConfigError(f"model.{given} comes from the data; set data.image_size or data.classes instead")
    images = load_images(recipe.data)
    from_data = {"image_size": recipe.data.image_size, "class_names": list(images.class_names)}
    accelerator = build_accelerator(recipe.train)
    if accelerator.is_fsdp2:
        raise ConfigError("a tokenizer is too small to shard; start it with --multi_gpu instead of --use_fsdp")
    out = Path(recipe.out)
    set_seed(recipe.train.seed)
    model = build_tokenizer(recipe, from_data)
    adversary = build_adversary(recipe.discriminator, recipe.data.image_size)
    if adversary is not None and recipe.discriminator.adaptive_weight and not model.last_layer.requires_grad:
        raise ConfigError(
            "discriminator.adaptive_weight is measured at the decoder's last layer, which is frozen: set it to false"
        )
    with sole_run(out):
        folder = decided_by_first_process(lambda: start_stage(out, recipe, resume))
        if resume and (done := decided_by_first_process(lambda: finished_run(out))):
            return done
        task = TokenizerTask(loss.to(accelerator.device), images.validation, recipe.train, adversary)
        trainer = Trainer(task, model, images.train.spread_versions(), recipe.train, folder, accelerator)
        result = trainer.run(resume=resume)
        averaged = trainer.model_to_save
        if averaged is not None:
            averaged.config.averaging_decay = recipe.train.ema_decay
            with files_into(out) as partial:
                averaged.save_pretrained(partial)
                ImageProcessor(size=model.config.image_size).save_pretrained(partial)
            result["data"] = images.source
            result["parameters"] = sum(p.numel() for p in model.parameters())
            write_json(out / "result.json", result)
        wait_for_all()
        return result
