"""Which condition each sample of an evaluation is drawn under."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from wvq.data.imagenet import folders_by_name
from wvq.errors import ConfigError, DataError
from wvq.generator.base.conditioning import class_ids, warn_of_numbers_as_names

if TYPE_CHECKING:
    from wvq.data.dataset import ImageDataset
    from wvq.generator.base.configuration import GeneratorConfig

Item = TypeVar("Item")


@dataclass(frozen=True)
class Conditions:
    """The condition of each sample.

    Attributes:
        labels: a class for each, by name or id; None for no class.
        ids: the same by id: which id a name has depends on the config.
        class_setting: how the result describes the choice of classes.
        texts: a text for each; None for none.
    """

    labels: list[str | int] | None
    ids: list[int] | None
    class_setting: str | list[str | int] | None
    texts: list[str] | None

    def part(self, run: range) -> dict[str, Any]:
        """The conditions of some samples, as arguments of the pipeline."""
        arguments: dict[str, Any] = {}
        if self.ids is not None:
            arguments["class_labels"] = self.ids[run.start : run.stop]
        if self.texts is not None:
            arguments["prompt"] = self.texts[run.start : run.stop]
        return arguments


def conditions_hash(labels: Sequence[str | int] | None, texts: Sequence[str] | None) -> str:
    """Hash that identifies the conditions of an evaluation."""
    return hashlib.sha256(json.dumps([labels, texts]).encode()).hexdigest()


def check_conditions(
    config: GeneratorConfig,
    classes: str | Sequence[str | int] | None,
    prompts: str | Sequence[str] | None,
    num_images: int,
) -> str | list[str | int] | None:
    """Check that the model has the requested conditions; needs neither weights nor pictures.

    Args:
        config: config of the generator.
        classes, prompts: as in :func:`wvq.eval.generation.evaluate_generation`.
        num_images: number of samples.

    Returns:
        The choice of classes, as a result describes it: ``balanced``, ``reference``, a list of names or ids, or None.

    Raises:
        ConfigError: unknown classes, a count that cannot be balanced, a condition that the model does not have, or bad
            prompts.
    """
    _check_prompts(config, prompts)
    if isinstance(classes, str) and classes == "auto":
        classes = "balanced" if config.num_classes and prompts is None else None
    if classes is None:
        return None
    if not config.num_classes:
        raise ConfigError("classes: this pipeline has no classes; give prompts, or classes=None")
    if isinstance(classes, str):
        if classes not in ("balanced", "reference"):
            raise ConfigError(
                f"classes must be auto, balanced, reference or none (in Python: a list, or None), not {classes!r}"
            )
        if classes == "reference":
            return classes
    else:
        classes = list(classes)
        ids = class_ids(classes, config.class_names, config.num_classes)
        warn_of_numbers_as_names(classes, config.class_names)
        classes = [label if isinstance(label, str) else number for label, number in zip(classes, ids, strict=True)]
        if not classes:
            raise ConfigError("classes is an empty list; give class names or ids, or None")
    count = len(_balanced_classes(config, classes))
    if num_images % count:
        below = num_images // count * count
        near = " or ".join(str(number) for number in (below, below + count) if number)
        raise ConfigError(
            f"num_images={num_images} cannot be balanced over {count} classes; use {near}, or classes reference"
        )
    return classes


def reference_choice(config: GeneratorConfig) -> tuple[str | None, str | None]:
    """Classes and prompts by which samples are drawn under the conditions of the reference: its classes where the model
    has classes, or else its captions where it has text.
    """
    if config.num_classes:
        return "reference", None
    return None, "reference" if config.text_dim else None


def _check_prompts(config: GeneratorConfig, prompts: str | Sequence[str] | None) -> None:
    if prompts is None:
        return
    if not config.text_dim:
        raise ConfigError("prompts: this pipeline is not conditional on text; leave them out")
    if isinstance(prompts, str) and prompts != "reference":
        raise ConfigError(f"prompts must be 'reference' (in Python also a list of texts), not {prompts!r}")
    if not prompts:
        raise ConfigError("prompts is an empty list")


def _balanced_classes(config: GeneratorConfig, classes: str | list[str | int]) -> list[str | int]:
    """The classes of which equally many samples are drawn: those that are named, or all."""
    return list(range(config.num_classes)) if isinstance(classes, str) else classes


def condition_plan(
    config: GeneratorConfig,
    dataset: ImageDataset | None,
    reference_indices: list[int],
    classes: str | Sequence[str | int] | None,
    prompts: str | Sequence[str] | None,
    num_images: int,
) -> Conditions:
    """One class and one text for each sample.

    Where classes are those of the reference pictures, pictures without a class are skipped. Captions of the
    reference are then those of the same pictures.

    Args:
        config: of the generator.
        dataset: holds the reference pictures; None if no data set does.
        reference_indices: which of its pictures the samples are compared with.
        classes, prompts: as in :func:`wvq.eval.generation.evaluate_generation`.
        num_images: number of samples.

    Raises:
        ConfigError: see :func:`check_conditions`.
        DataError: the classes or captions of reference pictures that have none.
    """
    setting = check_conditions(config, classes, prompts, num_images)
    if setting == "reference" and dataset is not None and dataset.labels is not None:
        reference_indices = [index for index in reference_indices if dataset.labels[index] >= 0]
    labels: list[str | int] | None = None
    if setting == "reference":
        labels = [*_repeat(_reference_classes(dataset, reference_indices, config.class_names), num_images)]
    elif setting is not None:
        labels = _repeat(_balanced_classes(config, setting), num_images)
    ids = class_ids(labels, config.class_names, config.num_classes) if labels else None
    return Conditions(labels, ids, setting, _prompt_plan(dataset, reference_indices, prompts, num_images))


def _prompt_plan(
    dataset: ImageDataset | None, reference_indices: list[int], prompts: str | Sequence[str] | None, num_images: int
) -> list[str] | None:
    """One text for each sample."""
    if prompts is None:
        return None
    if isinstance(prompts, str):
        if dataset is None or dataset.captions is None:
            raise DataError("prompts='reference' needs pictures with captions; this data set has none")
        prompts = [dataset.captions[index] for index in reference_indices]
    return _repeat(prompts, num_images)


def plan_warnings(
    dataset: ImageDataset | None,
    indices: list[int],
    class_setting: str | list | None,
    prompts: str | Sequence[str] | None,
) -> list[str]:
    """Lines on balanced samples against a reference that is not, and on classes beside captions of the reference.

    Args:
        dataset: the real pictures, if they are a data set.
        indices: those that samples are compared with.
        class_setting: how the result describes the classes.
        prompts: as in ``evaluate_generation``.
    """
    lines = []
    if prompts == "reference" and class_setting not in (None, "reference"):
        lines.append(
            "captions are those of the reference pictures and classes are not: "
            "classes='reference' takes both from the same pictures"
        )
    if class_setting != "balanced" or dataset is None or dataset.labels is None:
        return lines
    counts = Counter(dataset.labels[index] for index in indices if dataset.labels[index] >= 0)
    sizes = [counts.get(label, 0) for label in range(len(dataset.class_names))]
    if max(sizes, default=0) > 1.5 * min(sizes, default=0) + 3:
        lines.append(
            f"samples are balanced over classes, the reference is not ({min(sizes)} to {max(sizes)} pictures a class): "
            "classes='reference' draws the classes of the reference pictures"
        )
    return lines


def _reference_classes(dataset: ImageDataset | None, indices: list[int], names: list[str]) -> list[str]:
    if dataset is None or dataset.labels is None:
        raise DataError("classes='reference' needs pictures with classes; this data set has none")
    own = list(dataset.class_names)
    own = own if set(own) <= set(names) else folders_by_name(own)
    known = [own[dataset.labels[index]] for index in indices]
    if not known:
        raise DataError("classes='reference': none of the reference pictures has a class; choose other classes")
    if unknown := sorted(set(known) - set(names)):
        raise DataError(f"classes='reference': the pipeline does not know {unknown[0]!r}")
    return known


def _repeat(items: Sequence[Item], count: int) -> list[Item]:
    return [items[position % len(items)] for position in range(count)]
