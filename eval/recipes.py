"""The recipes of the evaluations and of the atomic study. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from wvq.checks import (
    FIELDS,
    FLAG,
    PATH,
    SAMPLE_SEED,
    SEED,
    SOURCE,
    TEXT,
    Checker,
    Rule,
    as_integer,
    check_groups,
    integer,
    interval,
    is_integer,
    list_of,
    or_null,
)
from wvq.errors import ConfigError, near_match
from wvq.eval.features.names import FEATURE_NETWORKS, INCEPTION
from wvq.eval.presets import with_preset
from wvq.eval.real.kinds import FEWEST, KINDS, require_kind
from wvq.eval.sweeps import parse_sweep
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.settings.data import DataConfig

MOST_PIXELS = 4_096  # a side that samples may be brought to
CLASSES = ("auto", "balanced", "reference", "none")
PROMPTS = ("reference",)
_DATA_FILES = (".parquet", ".tar")
# The side that samples are brought to.
RESIZE = Rule(
    f"from 1 to {MOST_PIXELS:,} pixels",
    lambda side: side is None or (is_integer(side) and side <= MOST_PIXELS),
    as_integer,
)


@dataclass
class EvaluationRecipe:
    """Fields of both evaluations: the pictures that a model is compared with, and the network that compares them.

    Args:
        data: the pictures: the held-out ones for a tokenizer, the training ones for a generator.
        reference: .npz file in the form of ADM's evaluation, for samples, in place of ``data``.
        reference_kind: ``train`` or ``validation``: what an .npz file holds, or which part of ``data`` is taken.
            Samples need the former and reconstructions the latter, which is taken if None.
        force_reference: accept the other kind; the result records that.
        feature_network: ``inception`` or ``efficientnet_lite0``; the former where its weights are given, if None.
        inception_weights: file with torch-fidelity's Inception weights.
        num_workers: loader processes of each process; if None, on a GPU as many as there are cores for each (at most
            16), and none on a CPU.
        out: JSON file for the result.
        overwrite: measure again where ``out`` holds a result already, and write over it.
    """

    data: DataConfig = field(default_factory=DataConfig)
    reference: str | None = None
    reference_kind: str | None = None
    force_reference: bool = False
    feature_network: str | None = None
    inception_weights: str | None = None
    num_workers: int | None = None
    out: str | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range or does not go with another."""
        check_groups(self)
        check = Checker(self)
        check.each(or_null(TEXT), "reference_kind")
        check.each(or_null(PATH), "reference", "inception_weights", "out")
        check.each(FLAG, "force_reference", "overwrite")
        check.one_of("feature_network", (None, *FEATURE_NETWORKS))
        check.each(or_null(integer(0)), "num_workers")
        if self.out is not None and Path(self.out).suffix in (".md", ".html", ".npz"):
            raise ConfigError(f"out: {self.out} must be a JSON file; a text and a page are written beside it")
        if self.inception_weights is not None and self.feature_network not in (None, INCEPTION):
            raise ConfigError("--inception-weights goes with the feature network inception; leave one of them out")


@dataclass(kw_only=True)
class ReconstructionEvaluation(EvaluationRecipe):
    """The evaluation of a tokenizer on held-out pictures.

    Args:
        data, reference, reference_kind, force_reference, feature_network, inception_weights, num_workers, out,
            overwrite: as in :class:`EvaluationRecipe`.
        tokenizer: tokenizer folder or Hub id.
        lpips: file with torchvision's VGG-16 weights, or ``download``: also measure LPIPS.
        batch_size: pictures at once.
        device: cpu, cuda, ...; the best there is if not given.
    """

    tokenizer: str
    lpips: str | None = None
    batch_size: int = 64
    device: str | None = None

    @property
    def kind(self) -> str:
        """Which part of the data is taken."""
        return self.reference_kind or KINDS["reconstruction"]

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range or does not go with another."""
        super().check()
        check = Checker(self)
        check.each(SOURCE, "tokenizer")
        check.each(or_null(PATH), "lpips")
        check.each(or_null(TEXT), "device")
        check.each(integer(), "batch_size")
        if self.reference:
            raise ConfigError("reference: reconstructions need the pictures themselves; give --data.path")
        require_kind("reconstruction", self.kind, self.force_reference)


@dataclass(kw_only=True)
class GenerationEvaluation(EvaluationRecipe):
    """The evaluation of a pipeline's samples against real pictures.

    Args:
        data, reference, reference_kind, force_reference, feature_network, inception_weights, num_workers, out,
            overwrite: as in :class:`EvaluationRecipe`.
        pipeline: pipeline folder or Hub id.
        preset: protocol of a published figure, such as llamagen_b_256.
        num_images: samples; 1000 if not given.
        classes: auto (if not given), balanced, reference or none.
        prompts: reference: the captions of the real pictures.
        clip: folder or Hub id of a CLIP model: also its score of the prompts.
        resize: side that samples are brought to before they are measured.
        sweep: also over a range, such as guidance_scale=1:4:0.5.
        save_samples: keep the samples: a folder of PNGs, or an .npz file.
        sampling: fields of SamplingSettings; the pipeline's own where None or left out.
        weights: bf16 or int8: faster sampling, nearly the same codes.
        seed: sample i is drawn from seed + i.
        batch_size: pictures at once.
        device: cpu, cuda, ...; the best there is if not given.
    """

    # A field of the tokenizer's evaluation; both may share a recipe file.
    FORMER_FIELDS: ClassVar[dict[str, Any]] = {"lpips": None}

    pipeline: str
    preset: str | None = None
    num_images: int | None = None
    classes: str | None = None
    prompts: str | None = None
    clip: str | None = None
    resize: int | None = None
    sweep: str | None = None
    save_samples: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    seed: int = 0
    batch_size: int = 32
    device: str | None = None

    @property
    def kind(self) -> str:
        """Which part of the data is taken, or what the file of the reference holds.

        Raises:
            ConfigError: a file is given without ``reference_kind``.
        """
        if self.reference_kind is None and self.reference:
            raise ConfigError(f"--reference-kind must say what {self.reference} holds: train or validation pictures")
        return self.reference_kind or KINDS["generation"]

    @property
    def class_choice(self) -> str | None:
        """The classes as ``evaluate_generation`` takes them."""
        return {None: "auto", "none": None}.get(self.classes, self.classes)

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range or does not go with another."""
        super().check()
        check = Checker(self)
        check.each(SOURCE, "pipeline")
        check.each(or_null(SOURCE), "clip")
        check.each(or_null(PATH), "save_samples")
        check.each(or_null(TEXT), "preset", "sweep", "weights", "device")
        check.each(or_null(integer(FEWEST)), "num_images")
        if self.classes is not None and self.classes not in CLASSES:
            near = near_match(str(self.classes), CLASSES)
            raise ConfigError(
                f"classes must be {', '.join(CLASSES[:-1])} or {CLASSES[-1]}{near}, got {self.classes!r}; for samples "
                "of some classes alone name these in data.classes, with classes reference"
            )
        check.one_of("prompts", (None, *PROMPTS))
        check.each(RESIZE, "resize")
        check.each(FIELDS, "sampling")
        check.each(integer(), "batch_size")
        check.each(SAMPLE_SEED, "seed")
        if self.reference is not None and (Path(self.reference).is_dir() or self.reference.endswith(_DATA_FILES)):
            raise ConfigError(
                f"reference: {self.reference} is no .npz file as ADM's evaluation has them; pictures of a folder or a "
                "data set are given as --data.path"
            )
        recipe = with_preset(self)
        EvaluationRecipe.check(recipe)
        SamplingSettings().updated(**recipe.sampling)
        if recipe.sweep is not None:
            parse_sweep(recipe.sweep)
        require_kind("generation", recipe.kind, recipe.force_reference)
        check_clip(recipe.clip, recipe.prompts)


def check_clip(clip: object, prompts: object) -> None:
    """Check that samples have prompts where a CLIP score, which compares the two, is requested.

    Raises:
        ConfigError: they have none.
    """
    if clip is not None and prompts is None:
        raise ConfigError("clip: a CLIP score needs prompts; give --prompts reference")


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

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range; each cell checks its own."""
        check = Checker(self)
        check.each(PATH, "out")
        check.each(or_null(TEXT), "preset")
        check.each(or_null(list_of(TEXT, "a list of one or more names")), "quantizers", "distributions")
        numbers = or_null(list_of(interval("(-inf, inf)"), "a list of one or more numbers"))
        check.each(numbers, "shifts", "separations", "target_scales", "code_scales")
        sizes = ("num_codes", "code_dim", "num_features", "evaluation_features", "num_projections")
        check.each(or_null(integer()), *sizes)
        check.each(or_null(integer(0)), "steps")
        check.each(SEED, "seed")
        check.each(FLAG, "progress")
