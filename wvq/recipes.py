"""Recipes: the typed settings of every command, read from YAML, overridden by dotted names. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wvq.settings import Checker, ConditionConfig, DiscriminatorConfig, LossConfig, ObjectiveConfig, TrainConfig


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
        caption_column: column with the captions; found by the names ``caption``, ``captions`` and ``text`` if not
            given. A picture may have a list of them: training draws one each time.
        classes: names of the classes to keep, in this order; all if not given.
        image_size: side of the square pictures that the model sees, in pixels.
        crop: training crop: ``random``; ``ten``: in turn the centre, the four corners and the mirror images of these;
            or ``center`` (validation is always centre).
        min_crop_fraction: smallest share of the shorter side that a random crop keeps, or that of a corner, in (0, 1].
        crop_scales: of ``ten``, in place of ``min_crop_fraction``: the crops are taken from the picture's central
            square of each of so many times ``image_size`` pixels, ten from each; numbers of at least 1.
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
    crop_scales: list[float] | None = None
    flip: bool = False
    seed: int = 0
    unreadable: str = "skip"


@dataclass
class TokenizerRecipe:
    """Stage one: pictures to a trained tokenizer.

    Args:
        out: folder for the tokenizer, its log and its checkpoints.
        data: the pictures.
        model: fields of WassersteinVQConfig; ``image_size`` and ``class_names`` come from the data.
        loss: reconstruction loss.
        discriminator: the adversary, if any.
        train: the training loop.
        start: folder or Hub id of a tokenizer to start from: its encoder and decoder are taken over, and its quantizer
            if ``model`` does not ask for another one; ``model`` then holds what differs from it.
        freeze: parts that do not train, separated by commas: ``encoder``, ``quantizer``, ``decoder``.
    """

    out: str = "runs/tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    start: str | None = None
    freeze: str = ""


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
        check = Checker(self, "")
        for name in ("num_crops", "batch_size"):
            check(name, "at least 1", lambda value: value >= 1)
        check("num_workers", "at least 0, or null", lambda value: value is None or value >= 0)
        versions = 10 * len(self.data.crop_scales or (1,))
        wanted = f"{versions} where data.crop is ten" + (", ten a scale" if self.data.crop_scales else "")
        check("num_crops", wanted, lambda value: self.data.crop != "ten" or value == versions)


@dataclass
class GeneratorRecipe:
    """Stage two: a cache of codes to a trained pipeline.

    Args:
        out: pipeline folder; the generator, its log and its checkpoints go into its ``generator`` folder.
        codes: folder of the code cache.
        tokenizer: folder or Hub id of the tokenizer that made the cache.
        condition: classes and captions.
        objective: label smoothing and the order of the codes.
        model: fields of ImageCodeTransformerConfig; codes, grid and conditions come from the cache.
        train: the training loop.
    """

    out: str = "runs/pipeline"
    codes: str = "runs/codes"
    tokenizer: str = "runs/tokenizer"
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    model: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class EvaluationRecipe:
    """What a model is measured against.

    Args:
        data: the pictures: the held-out ones for a tokenizer, the training ones for a generator.
        reference: .npz file in the form of ADM's evaluation, for samples, in place of ``data``.
        reference_kind: ``train`` or ``validation``: what an .npz file holds, or which part of ``data`` is taken.
            Samples need the former and reconstructions the latter, which is taken if None.
        force_reference: take the other kind all the same; the result says so.
        feature_network: ``inception`` or ``efficientnet_lite0``; the former where its weights are given, if None.
        inception_weights: file with torch-fidelity's Inception weights.
        lpips: file with torchvision's VGG-16 weights, or ``download``: also measure LPIPS of reconstructions.
        num_workers: loader processes of each process; if None, on a GPU as many as there are cores for each (at most
            16), and none on a CPU.
        out: JSON file for the result.
    """

    data: DataConfig = field(default_factory=DataConfig)
    reference: str | None = None
    reference_kind: str | None = None
    force_reference: bool = False
    feature_network: str | None = None
    inception_weights: str | None = None
    lpips: str | None = None
    num_workers: int | None = None
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
