"""Trains the generator (stage two) over a code cache.

    wvq train-generator --config configs/openmoji_32/generator.yaml --codes runs/codes --tokenizer runs/tokenizer
    accelerate launch --num_processes 8 --mixed_precision bf16 -m wvq train-generator --config ...

A run writes into <out>/generator: the model (config.json, model.safetensors), recipe.yaml, result.json, and training/
with log.jsonl, TensorBoard files, sample sheets and checkpoints.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset

from wvq.data.codes import CodeDataset, CodeHeader
from wvq.data.layout import layout_text
from wvq.data.sheets import image_grid
from wvq.distributed import decided_by_first_process, gather_objects, process_rank, wait_for_all
from wvq.errors import CacheError, ConfigError
from wvq.files.atomic import files_into, write_json
from wvq.files.locks import sole_run
from wvq.files.names import TRAINING
from wvq.files.stage_folder import finished_run, recipe_of_run, start_stage
from wvq.generator.conditioned_codes import ConditionedCodes
from wvq.generator.conditioning import Condition
from wvq.generator.configuration import ImageCodeTransformerConfig
from wvq.generator.memory import sampling_bytes, training_bytes, whole_pass_bytes
from wvq.generator.modeling import ImageCodeTransformer
from wvq.generator.recipes import JOINT_DROPOUT, ConditionConfig, GeneratorRecipe, ObjectiveConfig
from wvq.generator.sampling import sample_codes
from wvq.generator.sampling_settings import SamplingSettings
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.text.run_text import keep_text_encoder, require_same_encoder, run_padding
from wvq.hardware import send
from wvq.memory import require_memory
from wvq.settings.train import TrainConfig
from wvq.training.acceleration import build_accelerator
from wvq.training.optimization import network_groups
from wvq.training.task import StepLoss, Task
from wvq.training.trainer import Trainer

MOST_FITTED = 20_000  # captions that the whitening of text features is taken from
FITTED_AT_ONCE = 64
EVALUATED = 64  # held-out pictures at once
ON_SHEET, SHEET_SETTINGS = 24, SamplingSettings(guidance_scale=2.0)
_FROM_CACHE = ("num_codes", "grid", "num_classes", "class_names", "tokenizer_hash")
_FROM_TEXT_ENCODER = ("text_dim", "text_length", "text_padding", "text_encoder_hash")


class GeneratorTask(Task):
    """What the training loop needs to know of the generator.

    Args:
        tokenizer: anything with ``decode_codes``, to draw the sample sheets.
        validation: held-out pictures.
        condition, objective, config: of the recipe.
        reference: figures of the data that go beside every evaluation.
        text_encoder: of batches that hold captions and no features of them; on the device of the model.
    """

    name = "generator"

    def __init__(
        self,
        tokenizer,
        validation: ConditionedCodes,
        condition: ConditionConfig,
        objective: ObjectiveConfig,
        config: TrainConfig,
        reference: dict,
        text_encoder: TextEncoder | None = None,
    ):
        self.tokenizer, self.validation = tokenizer, validation
        self.condition = settled_condition(condition)
        self.objective, self.config, self.reference = objective, config, reference
        self.text_encoder = text_encoder

    def parameter_groups(self, model: ImageCodeTransformer) -> list[dict]:
        return network_groups(list(model.parameters()), self.config)

    def loss(self, model: nn.Module, batch: dict, images_seen: int, progress: float) -> StepLoss:
        batch = self._with_features(batch, batch["codes"].device)
        given = Condition(batch.get("class_labels"), batch.get("text_features"), batch.get("text_mask"))
        shares = self.condition
        kept = given.drop(shares.class_dropout, shares.text_dropout, shares.joint_dropout)
        codes, share = batch["codes"], self.objective.random_share(progress)
        order = send(random_order(len(codes), codes[0].numel(), share), codes.device) if share else None
        conditions = (kept.class_labels, kept.text_features, kept.text_mask)
        return StepLoss(model(codes, *conditions, order, self.objective.label_smoothing).loss, {})

    @torch.no_grad()
    def _with_features(self, batch: dict, device: torch.device) -> dict[str, torch.Tensor]:
        """The batch on the device, its captions encoded."""
        captions = batch.get("caption")
        batch = {name: value.to(device) for name, value in batch.items() if name != "caption"}
        if captions is not None:
            # In float32, as features that are kept are made; texts that are cut were told of before the first step.
            with torch.autocast(device.type, enabled=False), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                batch["text_features"], batch["text_mask"] = self.text_encoder.encode(captions)
        return batch

    @torch.no_grad()
    def evaluate(self, model: ImageCodeTransformer, accelerator: Accelerator) -> dict[str, float]:
        """Mean loss (nats a code) and accuracy over the held-out pictures' first crops, with all conditions given.

        Also both position by position, row by row, and what the codes of a picture cost in bits a pixel.
        """
        share = Subset(
            self.validation, range(accelerator.process_index, len(self.validation), accelerator.num_processes)
        )
        length = self.validation.codes.header.sequence_length
        sums = torch.zeros(3, length, dtype=torch.float64, device=model.device)
        batches = DataLoader(share, batch_size=EVALUATED, collate_fn=self.validation.collate_fn)
        for batch in self.stop.until_set(batches):
            batch = self._with_features(batch, model.device)
            codes = batch["codes"].flatten(1)
            logits = model(**batch).logits.float()
            losses = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
            hits = logits.argmax(-1) == codes
            sums += torch.stack([x.double().sum(0) for x in (losses, hits, torch.ones_like(hits))])
        losses, hits, counts = accelerator.reduce(sums, "sum").cpu()
        loss = float(losses.sum() / counts.sum())
        return {
            "loss": loss,
            "accuracy": float(hits.sum() / counts.sum()),
            "bits_per_pixel": loss * length / math.log(2) / self.validation.codes.header.image_size**2,
            "loss_per_position": [round(value, 4) for value in (losses / counts).tolist()],
            "accuracy_per_position": [round(value, 4) for value in (hits / counts).tolist()],
            **self.reference,
        }

    @torch.no_grad()
    def picture(self, model: ImageCodeTransformer) -> Image.Image:
        """Samples under the conditions of the first held-out pictures (spread over the set)."""
        count = min(ON_SHEET, len(self.validation))
        batch = self.validation.__getitems__([i * len(self.validation) // count for i in range(count)])
        batch = self._with_features(batch, model.device)
        batch.pop("codes")
        codes = sample_codes(model, Condition(**batch), list(range(count)), SHEET_SETTINGS)
        pictures = self.tokenizer.decode_codes(codes.to(self.tokenizer.device)).cpu()
        return image_grid(pictures, columns=8, scale=max(1, 96 // pictures.shape[-1]))


def random_order(count: int, length: int, share: float) -> torch.Tensor:
    """Orders (count, length) of positions: of that share of the rows a random one each, of the others 0, 1, 2, ..."""
    orders = torch.rand(count, length).argsort(1)
    return torch.where(torch.rand(count, 1) < share, orders, torch.arange(length))


def train_generator(recipe: GeneratorRecipe, tokenizer, resume: bool = False) -> dict:
    """Train a generator as the recipe says and save it in ``<recipe.out>/generator``.

    Args:
        recipe: settings.
        tokenizer: the WassersteinVQModel that made the cache.
        resume: continue the run in ``recipe.out``.

    Returns:
        Held-out figures and the run's counts (see :meth:`Trainer.run`), as saved in ``result.json``.

    Raises:
        ConfigError, CacheError, DataError: bad settings or cache, before training starts.
    """
    recipe.check()
    train, validation = (CodeDataset(recipe.codes, split, recipe.train.seed) for split in ("train", "validation"))
    check_cache(train.header, tokenizer, recipe)
    accelerator = build_accelerator(recipe.train)
    out = Path(recipe.out) / "generator"
    padding = run_padding(out / TRAINING) if resume else "right"
    text_encoder = build_text_encoder(train, recipe.condition, padding)
    config = build_config(recipe, train.header, text_encoder)
    condition = decided_by_first_process(lambda: settled_condition(recipe.condition, out, resume))
    recipe = replace(recipe, condition=condition)
    with sole_run(out):
        folder = decided_by_first_process(lambda: start_stage(out, recipe, resume))
        if resume and (done := decided_by_first_process(lambda: finished_run(out))):
            return done
        if text_encoder is not None and resume:
            require_same_encoder(folder, text_encoder, recipe.condition.text_encoder)
        elif text_encoder is not None and accelerator.is_main_process:
            keep_text_encoder(folder, text_encoder)
        classes = config.num_classes > 0
        kept = recipe.condition.text_cache
        sets = [
            ConditionedCodes(codes, classes, text_encoder, kept, accelerator.device) for codes in (train, validation)
        ]
        set_seed(recipe.train.seed)
        model = ImageCodeTransformer(config)
        if config.code_dim:
            model.set_codebook(
                tokenizer.quantizer.lookup(torch.arange(config.num_codes, device=tokenizer.device)).cpu()
            )
        live_encoder = None
        if text_encoder is not None:
            if kept == "none":
                live_encoder = text_encoder.to(accelerator.device)
            if not resume:  # a checkpoint holds what came of it
                fit_text(model, sets[0], live_encoder)
            del text_encoder  # features that are kept need it no more
        _require_memory(model, recipe.train, accelerator)
        reference = {"unigram_entropy": train.unigram_entropy()}
        task = GeneratorTask(
            tokenizer.to(accelerator.device),
            sets[1],
            recipe.condition,
            recipe.objective,
            recipe.train,
            reference,
            live_encoder,
        )
        parameters = sum(p.numel() for p in model.parameters())
        trainer = Trainer(task, model, sets[0], recipe.train, folder, accelerator)
        result = trainer.run(resume=resume)
        averaged = trainer.model_to_save
        if averaged is not None:
            averaged.config.averaging_decay = recipe.train.ema_decay
            with files_into(out) as partial:
                averaged.save_pretrained(partial)
            result["parameters"] = parameters
            write_json(out / "result.json", result)
        wait_for_all()
        return result


def fit_text(model: ImageCodeTransformer, train_set: ConditionedCodes, encoder: TextEncoder | None) -> None:
    """Whiten the text projections by a sample of the captions: the first process's, for all.

    Args:
        model: on any device.
        train_set: whose captions.
        encoder: for a set that keeps no features.
    """
    if process_rank() == 0:
        texts = train_set.captions
        rows = np.random.default_rng(0).choice(len(texts), min(len(texts), MOST_FITTED), replace=False, shuffle=False)
        rows.sort()  # neighbours lie together on disk
        if train_set.text is not None:
            batches = (
                train_set.text[some] for some in np.split(rows, range(FITTED_AT_ONCE, len(rows), FITTED_AT_ONCE))
            )
        else:
            batches = encoder.stream(texts.texts(rows), FITTED_AT_ONCE)
        model.condition.fit_text(batches)
    names = ("text_projection", "text_bias")
    fitted = [getattr(model.condition, name).state_dict() for name in names if hasattr(model.condition, name)]
    for name, state in zip(names, gather_objects(fitted if process_rank() == 0 else None)[0], strict=False):
        getattr(model.condition, name).load_state_dict(state)


def _require_memory(model: ImageCodeTransformer, config: TrainConfig, accelerator: Accelerator) -> None:
    """Refuse a run that cannot fit; with the weights of a sharded run on one process, nothing can be said."""
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        return
    micro = max(1, config.batch_size // accelerator.num_processes // config.gradient_accumulation_steps)
    # Gradients between the parts of a step, and the buckets in which processes exchange them.
    gradients = 4 * (config.gradient_accumulation_steps > 1) + 4 * (accelerator.num_processes > 1)
    needed = training_bytes(
        model.config,
        sum(p.numel() for p in model.parameters()),
        micro,
        config.ema_decay > 0,
        config.gradient_checkpointing,
        mixed=accelerator.mixed_precision != "no",
        fused=accelerator.device.type == "cuda",
        gradients=gradients,
        between=max(whole_pass_bytes(model.config, EVALUATED), sampling_bytes(model.config, ON_SHEET, SHEET_SETTINGS)),
    )
    remedy = "raise train.gradient_accumulation_steps, set train.gradient_checkpointing, or take a smaller model"
    require_memory(needed, accelerator.device, f"training with {micro} pictures at once", remedy)


def check_cache(header: CodeHeader, tokenizer, recipe: GeneratorRecipe) -> None:
    """Hold a cache against the tokenizer.

    Raises:
        CacheError: another tokenizer made it, or it holds more than one code a position.
    """
    config = tokenizer.config
    if header.layout["kind"] != "grid":
        raise CacheError(
            f"{recipe.codes} holds {header.layout['kind']} codes ({layout_text(header.layout)}), and the generator "
            "draws one code a position; train a tokenizer with num_groups 1 and without scales, and export its codes"
        )
    for name, ours in (("num_codes", config.num_codes), ("grid", list(config.grid))):
        if getattr(header, name) != ours:
            raise CacheError(
                f"{recipe.codes} has {name} {getattr(header, name)}, but the tokenizer in {recipe.tokenizer} "
                f"has {ours}; export the codes with this tokenizer"
            )
    if not tokenizer.made(header.tokenizer_hash):
        raise CacheError(
            f"{recipe.codes} was made by another tokenizer than the one in {recipe.tokenizer}; "
            "export the codes with this tokenizer"
        )


def build_text_encoder(codes: CodeDataset, condition: ConditionConfig, padding: str = "right") -> TextEncoder | None:
    """The text encoder of a text-conditional run, on the CPU, or None.

    Raises:
        ConfigError: the codes have no captions.
        CheckpointError, DownloadError: the encoder cannot be read or fetched.
    """
    if not condition.text:
        return None
    if not codes.header.has_captions:
        raise ConfigError(
            "condition.text is on, but the code cache holds no captions; export it from data that has captions, or "
            "set condition.text to false"
        )
    return TextEncoder(condition.text_encoder, condition.text_length, padding=padding)


def settled_condition(condition: ConditionConfig, run: Path | None = None, resume: bool = False) -> ConditionConfig:
    """The condition with a joint dropout where it leaves that open: .1, or the resumed run's.

    Raises:
        ConfigError: there is no run to resume.
    """
    if condition.joint_dropout is not None:
        return condition
    share = recipe_of_run(run, GeneratorRecipe)["condition"]["joint_dropout"] if resume else JOINT_DROPOUT
    return replace(condition, joint_dropout=share)


def build_config(
    recipe: GeneratorRecipe, header: CodeHeader, text_encoder: TextEncoder | None
) -> ImageCodeTransformerConfig:
    """The model's config: sizes from the recipe, the rest from the cache.

    Raises:
        ConfigError: a field that comes from the cache is in the recipe, or one is out of range.
    """
    for given in (*_FROM_CACHE, *_FROM_TEXT_ENCODER):
        if given in recipe.model:
            raise ConfigError(f"model.{given} comes from the code cache and the condition settings; leave it out")
    names = header.class_names if recipe.condition.classes else []
    sizes = {"target_positions": True} if recipe.objective.random_order else {}
    if recipe.objective.random_order and recipe.model.get("target_positions") is False:
        raise ConfigError("objective.random_order needs model.target_positions; leave it out or set it to true")
    return ImageCodeTransformerConfig(
        **(sizes | recipe.model),
        num_codes=header.num_codes,
        grid=header.grid,
        num_classes=len(names),
        class_names=names,
        tokenizer_hash=header.tokenizer_hash,
        **(text_encoder.config_fields() if text_encoder else {}),
    )
