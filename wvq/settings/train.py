"""The training loop that both stages share. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from wvq.checks import FLAG, POSITIVE, SEED, Checker, integer, interval, number, or_null


@dataclass
class TrainConfig:
    """The training loop that both stages share. It counts pictures, not epochs or steps.

    Args:
        images: pictures to train on in all; every repetition counts.
        batch_size: pictures of one optimiser step, over all processes and accumulation steps together.
        gradient_accumulation_steps: parts that the batch of one process is cut into, to save memory. Statistics and
            alignment of a codebook, and LeCam's averages, are those of the whole batch; what is not linear in the
            pictures (the entropy of ``lfq``, the adaptive weight) is computed in each part.
        learning_rate: peak learning rate of the network.
        schedule: ``constant``, ``cosine`` or ``linear`` decay, from the end of the warm-up to that of the run.
        final_learning_rate: what the schedule ends at, as a share of the peak.
        warmup_images: pictures over which the rate rises from 0.
        beta1, beta2, weight_decay: AdamW; decay acts on parameters of two or more dims only, never on the codebook.
        clip_norm: bound on the gradient norm of the network, and of each group with a rate of its own (0: none).
        ema_decay: decay of the averaged weights that are evaluated and saved (0: none).
        mixed_precision: ``no``, ``bf16`` or ``fp16``; the launcher's choice if None.
        max_minutes: wall-clock bound on the training steps; evaluation is not counted. The schedule follows pictures or
            clock, whichever is further, so that a run cut short still ends at the final learning rate.
        log_every, evaluate_every, save_every: intervals in pictures; 0 leaves evaluation to the end, and saves none.
        keep_checkpoints: how many of the latest checkpoints stay on disk.
        num_workers: loader processes of each rank.
        channels_last: memory layout of convolutions; often faster; results differ by rounding only.
        compile: torch.compile of the network's parts; faster on GPUs, after a minute of compilation. Results differ by
            rounding, and dropout masks are others. Where it does not work, the run says so and goes on without it.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: less memory, a
            third more time.
        seed: start of weights, data order and dropout.
    """

    images: int = 1_000_000
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
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
        check.each(integer(), "images", "batch_size", "gradient_accumulation_steps", "log_every", "keep_checkpoints")
        check.each(integer(0), "warmup_images", "evaluate_every", "save_every", "num_workers")
        check.each(number(), "weight_decay")
        check.each(POSITIVE, "learning_rate")
        check.each(or_null(interval("(0, inf]")), "max_minutes")
        check.each(interval("[0, inf]"), "clip_norm")
        check.each(interval("[0, 1)"), "ema_decay", "beta1", "beta2")
        check.each(interval("[0, 1]"), "final_learning_rate")
        check.each(SEED, "seed")
        check.one_of("schedule", SCHEDULES)
        check.one_of("mixed_precision", PRECISIONS)
        check.each(FLAG, "channels_last", "compile", "gradient_checkpointing")


SCHEDULES = ("constant", "cosine", "linear")
PRECISIONS = (None, "no", "bf16", "fp16")
