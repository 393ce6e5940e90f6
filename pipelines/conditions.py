"""What each picture of a call is conditioned on, from the lists that a user gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from wvq.checks import is_integer
from wvq.errors import ConfigError
from wvq.generator.conditioning import class_ids
from wvq.generator.configuration import ImageCodeTransformerConfig


@dataclass
class Requested:
    """
    Attributes:
        labels: class id of each picture, None for the null class.
        prompts: text of each picture, None for the null text.
    """

    labels: list[int | None]
    prompts: list[str | None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice | list[int]) -> Requested:
        places = range(len(self))[part] if isinstance(part, slice) else part
        return Requested([self.labels[i] for i in places], [self.prompts[i] for i in places])


def requested(
    config: ImageCodeTransformerConfig, class_labels=None, prompt=None, num_images: int | None = None
) -> Requested:
    """Serve the conditions in order, each as often as the others.

    Args:
        config: of the generator.
        class_labels: a name or id, or several; None for the null class.
        prompt: a text or several; None for the null text. With classes too, both must be as many, or one.
        num_images: pictures in all; one a condition if None.

    Raises:
        ConfigError: an unknown class, a condition that the model does not have, no condition in a list, or a number of
            pictures that does not fit.
    """
    labels = _as_list(class_labels, (str, SupportsIndex), "class_labels must be a name, an id or a list of them")
    prompts = _as_list(prompt, str, "prompt must be a text or a list of texts")
    if labels is not None and not config.num_classes:
        raise ConfigError("class_labels are given, but this model has no classes; use a prompt or no condition")
    if prompts is not None and not config.text_dim:
        raise ConfigError("a prompt is given, but this model is not conditional on text; use class_labels")
    for name, values in (("class_labels", labels), ("prompt", prompts)):
        if values is not None and not values:
            raise ConfigError(f"{name} is an empty list; leave it out for no condition")
    if labels is not None:
        labels = class_ids(labels, config.class_names, config.num_classes)
    count = max(len(labels or [None]), len(prompts or [None]))
    for name, values in (("class_labels", labels), ("prompt", prompts)):
        if values is not None and len(values) not in (1, count):
            raise ConfigError(f"{name} has {len(values)} entries where the other condition has {count}")
    num_images = count if num_images is None else num_images
    if not is_integer(num_images) or num_images % count:
        raise ConfigError(f"num_images must be a positive multiple of the {count} condition(s), got {num_images!r}")
    each = num_images // count
    return Requested(*(_spread(values, count, each) for values in (labels, prompts)))


def check_call(seed: int, batch_size: int) -> None:
    """
    Raises:
        ConfigError: a seed below 0, or a batch size below 1.
    """
    if not is_integer(seed, 0):
        raise ConfigError(f"seed must be an integer of at least 0, got {seed!r}")
    if not is_integer(batch_size):
        raise ConfigError(f"batch_size must be an integer of at least 1, got {batch_size!r}")


def _spread(values: list | None, count: int, each: int) -> list:
    values = values or [None]
    return [value for value in (values if len(values) == count else values * count) for _ in range(each)]


def _as_list(value, single: type | tuple[type, ...], wanted: str) -> list | None:
    if value is None:
        return None
    values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not all(isinstance(one, single) for one in values):
        raise ConfigError(f"{wanted}, got {value!r}")
    return values
