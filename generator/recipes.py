"""Recipe of the command of stage two, and its groups of settings. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from wvq.checks import FIELDS, FLAG, PATH, SOURCE, Checker, check_groups, integer, interval, list_of, number, or_null
from wvq.generator.text.cleaning import TEXT_CLEANINGS
from wvq.settings.train import TrainConfig

JOINT_DROPOUT = 0.1  # where a recipe gives none
TEXT_CACHES = ("disk", "memory", "none")


@dataclass
class ConditionConfig:
    """The conditions of a picture that the generator sees.

    Args:
        classes: condition on the class, if the cache has classes.
        text: condition on the caption; needs captions in the cache.
        text_encoder: folder or Hub id of a transformers text encoder, or ``all-MiniLM-L6-v2`` (also from PyPI).
        text_length: tokens of a caption; longer ones are cut.
        text_cleaning: how captions are prepared for the text encoder: ``none``, or ``lower``, as LlamaGen has it
            (:func:`wvq.generator.text.cleaning.clean_text`).
        class_dropout, text_dropout: share of training pictures whose class or caption is replaced by the null
            condition, each on its own.
        joint_dropout: share of training pictures with a class and a caption that lose both at once, in addition:
            guidance contrasts with pictures without any condition, and dropouts of .1 each leave only 1% of these.
            If None, .1, or in a resumed run what it was started with.
        text_cache: where the captions' features lie in training: ``disk``, beside the codes, for all later runs, where
            they take 2 bytes a value and token; ``memory``, as much in each process; ``none``, nowhere: each step
            encodes its captions, and the encoder stays on the device.
    """

    classes: bool = True
    text: bool = False
    text_encoder: str = "all-MiniLM-L6-v2"
    text_length: int = 16
    text_cleaning: str = "none"
    class_dropout: float = 0.1
    text_dropout: float = 0.1
    joint_dropout: float | None = None
    text_cache: str = "disk"

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "condition")
        check.each(FLAG, "classes", "text")
        check.each(SOURCE, "text_encoder")
        check.each(integer(), "text_length")
        check.each(interval("[0, 1)"), "class_dropout", "text_dropout")
        check.each(or_null(interval("[0, 1)")), "joint_dropout")
        check.one_of("text_cache", TEXT_CACHES)
        check.one_of("text_cleaning", TEXT_CLEANINGS)


@dataclass
class ObjectiveConfig:
    """The generator's objective: its loss and the order of the codes.

    Args:
        label_smoothing: share of the target's probability that is spread over all codes, in [0, 1); training only.
        random_order: share of training pictures whose codes are read in a random order instead of row by row, at the
            start of the run (RAR, arXiv 2411.00776); 0: none. The model then also has ``target_positions``.
        order_anneal: shares of the run between which that share falls to 0, linearly; None keeps it, as drawing in any
            order needs (``passes`` in sampling).
    """

    label_smoothing: float = 0.0
    random_order: float = 0.0
    order_anneal: list[float] | None = field(default_factory=lambda: [0.5, 0.75])

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self, "objective")
        check.each(interval("[0, 1)"), "label_smoothing")
        check.each(interval("[0, 1]"), "random_order")
        shares = or_null(list_of(number(), "two shares of the run, 0 <= start < end <= 1", 2))
        check.each(shares, "order_anneal")
        check("order_anneal", shares.expected, lambda value: value is None or value[0] < value[1] <= 1)

    def random_share(self, progress: float) -> float:
        """Share of pictures in random order when this share of the run is over."""
        if self.order_anneal is None:
            return self.random_order
        start, end = self.order_anneal
        return self.random_order * min(1.0, max(0.0, (end - progress) / (end - start)))


@dataclass
class GeneratorRecipe:
    """Stage two: a cache of codes to a trained pipeline.

    Args:
        out: pipeline folder; the generator, its log and its checkpoints go into its ``generator`` folder.
        codes: folder of the code cache.
        tokenizer: folder or Hub id of the tokenizer that made the cache.
        condition: classes and captions.
        objective: label smoothing and the order of the codes.
        model: fields of the generator's config, whose kind the layout of the codes chooses; codes, grid and conditions
            come from the cache.
        train: the training loop.
        start: folder or Hub id of a generator, or of a pipeline, to start from: its network is taken over, and of its
            conditions what this run has too; ``model`` then holds what differs in training, such as ``dropout``.
    """

    # Fields of the tokenizer's loop, which earlier versions saved in the recipe of a generator's run too.
    FORMER_FIELDS: ClassVar[dict[str, Any]] = {
        "train.codebook_learning_rate": None,
        "train.codebook_schedule": "constant",
        "train.final_alignment": 1.0,
    }
    # Runs of versions before this field dropped classes and captions each on their own.
    LATER_FIELDS: ClassVar[dict[str, Any]] = {"condition.joint_dropout": 0.0}

    out: str = "runs/pipeline"
    codes: str = "runs/codes"
    tokenizer: str = "runs/tokenizer"
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    model: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    start: str | None = None

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check_groups(self)
        check = Checker(self)
        check.each(PATH, "out", "codes")
        check.each(SOURCE, "tokenizer")
        check.each(FIELDS, "model")
        check.each(or_null(SOURCE), "start")
