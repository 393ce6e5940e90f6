"""Trains the tokenizer (stage one).

    wvq train-tokenizer --config configs/openmoji_32/tokenizer.yaml --out runs/tokenizer
    accelerate launch --num_processes 8 --mixed_precision bf16 -m wvq train-tokenizer --config ...

A run writes into --out: the tokenizer (config.json, model.safetensors, preprocessor_config.json), recipe.yaml,
data_fingerprint.json, result.json, and training/ with log.jsonl, TensorBoard files, reconstruction sheets and
checkpoints.
"""

from __future__ import annotations

import warnings
from typing import Any

from accelerate.utils import set_seed

from wvq.data.dataset import ImageSplits
from wvq.data.fingerprint import fingerprint_of
from wvq.data.opening import StreamSplits, open_images
from wvq.data.splits import check_pictures
from wvq.distributed import decided_by_first_process, is_main_process
from wvq.errors import ConfigError
from wvq.files.fingerprint import DataFingerprint
from wvq.files.stage_folder import refuse_data_folder
from wvq.models.pretrained import resolve_folder
from wvq.tokenizer.adaptation import build_tokenizer
from wvq.tokenizer.adversarial import build_adversary
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.networks import norm
from wvq.tokenizer.recipes import TokenizerRecipe
from wvq.tokenizer.task import TokenizerTask
from wvq.training.acceleration import build_accelerator
from wvq.training.stage import claimed_stage
from wvq.training.trainer import Trainer


def train_tokenizer(
    recipe: TokenizerRecipe, resume: bool = False, images: ImageSplits | StreamSplits | None = None
) -> dict[str, Any]:
    """Train the tokenizer of a recipe and save it in ``recipe.out``.

    Args:
        recipe: settings.
        resume: continue the run in ``recipe.out``.
        images: the pictures of ``recipe.data``, if they have been read and their inventory shown before.

    Returns:
        Held-out figures and the run's counts (see :meth:`Trainer.run`), as saved in ``result.json``.

    Raises:
        ConfigError, DataError, CheckpointError, DownloadError: bad settings, data or folder, before training starts.
        RunInterrupted: SIGTERM or Ctrl-C came; a checkpoint was saved.
    """
    recipe.check()
    refuse_data_folder(recipe.out, recipe.data.path)
    loss = ReconstructionLoss(recipe.loss)
    if images is None:
        images = open_images(recipe.data)
        images.inventory.show()
    accelerator = build_accelerator(recipe.train)
    if accelerator.is_fsdp2:
        raise ConfigError("a tokenizer is too small to shard; start it with --multi_gpu instead of --use_fsdp")
    set_seed(recipe.train.seed)
    data = recipe.data
    from_data = {"image_size": data.size, "fit": data.fit, "pad_color": data.pad_color}
    model = build_tokenizer(recipe, {**from_data, "class_names": list(images.class_names)})
    if recipe.train.scale_conv_learning_rate is not None and not model.quantizer.scale_conv_parameters():
        raise ConfigError(
            "train.scale_conv_learning_rate is for the convolutions of several scales, which this tokenizer does not "
            "have: set it to null, or give model.scales"
        )
    trained = any(parameter.requires_grad for parameter in model.codebook_parameters())
    if recipe.train.codebook_learning_rate is not None and not trained and is_main_process():
        why = "is frozen" if "quantizer" in model.frozen else f'"{model.config.quantizer}" trains no codes by gradient'
        warnings.warn(f"train.codebook_learning_rate does nothing: the quantizer {why}", stacklevel=2)
    if recipe.loss.feature_weight and model.residual_projector is None:
        raise ConfigError(
            "loss.feature_weight is for a residual projector, which this tokenizer does not have: set it to 0, or give "
            "model.residual_projector"
        )
    width = model.config.channels[-1]
    if model.config.grid == (1, 1) and norm(width).num_groups == width:
        raise ConfigError(
            f"model.channel_multipliers makes a grid of 1 x 1 codes and {width} channels there, and each channel is "
            "normalised alone, so that nothing passes; make them wider, or take fewer levels"
        )
    adversary = build_adversary(recipe.discriminator, data.size)
    if adversary is not None and recipe.discriminator.adaptive_weight and not model.last_layer.requires_grad:
        raise ConfigError(
            "discriminator.adaptive_weight is measured at the decoder's last layer, which is frozen: set it to false"
        )
    fingerprint = decided_by_first_process(lambda: _fingerprint(recipe, images))
    with claimed_stage(recipe.out, recipe, resume, fingerprint, recipe.data) as stage:
        if stage.finished is not None:
            return stage.finished
        task = TokenizerTask(loss.to(accelerator.device), images.validation, recipe.train, adversary)
        trainer = Trainer(task, model, images.train.spread_versions(), recipe.train, stage.folder, accelerator)
        parameters = sum(p.numel() for p in model.parameters())
        return stage.train(trainer, data=images.source, parameters=parameters)


def _fingerprint(recipe: TokenizerRecipe, images: ImageSplits | StreamSplits) -> DataFingerprint | None:
    """The fingerprint of a run, with the pictures of the tokenizer that it starts from; None for a stream.

    Raises:
        ConfigError: that tokenizer was trained on pictures that are held out now.
    """
    fingerprint = fingerprint_of(images, recipe.data.path)
    if recipe.start is None:
        return fingerprint
    before = DataFingerprint.read(resolve_folder(recipe.start, "tokenizer"))
    for line in check_pictures(before, fingerprint, recipe.start, recipe.data):
        warnings.warn(line, stacklevel=2)
    return fingerprint and fingerprint.after(before)
