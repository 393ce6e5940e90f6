"""Conditions of the pictures of a call: from the lists that a user gives to the tensors of the generator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias, TypeGuard, TypeVar

import torch

from wvq.checks import SAMPLE_SEED, Rule, as_integer, integer, is_integer, locale_fault, require
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import NULL_CLASS, Condition, class_ids, warn_of_numbers_as_names
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.text.encoder import TextEncoder

ClassLabel: TypeAlias = str | SupportsIndex  # a name or an id
ClassLabels: TypeAlias = ClassLabel | Iterable[ClassLabel] | None
Prompts: TypeAlias = str | Iterable[str] | None
Value = TypeVar("Value")


@dataclass
class Requested:
    """The conditions of the pictures of a call, one a picture.

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
    config: GeneratorConfig,
    class_labels: ClassLabels = None,
    prompt: Prompts = None,
    num_images: int | None = None,
) -> Requested:
    """Repeat the conditions in order, each equally often.

    Args:
        config: config of the generator.
        class_labels: a name or id, or several; None for the null class. An integer is an id; a text is a name first,
            and else a number that is an id.
        prompt: a text or several; None for the null text. With classes too, both must be as many, or one.
        num_images: pictures in all; one a condition if None.

    Raises:
        ConfigError: an unknown class, a condition that the model does not have, no condition in a list, or a number of
            pictures that does not fit.
    """
    labels = _as_list(class_labels, _is_label, "class_labels must be a name, an id or a list of them")
    prompts = _as_list(prompt, _is_text, "prompt must be a text or a list of texts")
    if labels is not None and not config.num_classes:
        raise ConfigError("class_labels are given, but this model has no classes; use a prompt or no condition")
    if prompts is not None and not config.text_dim:
        raise ConfigError("a prompt is given, but this model is not conditional on text; use class_labels")
    for text in prompts or []:
        if re.search("[\ud800-\udfff]", text):  # what Python makes of bytes of the command line that are not UTF-8
            fault = locale_fault(text) or "it holds bytes that are no UTF-8 text; write it in UTF-8"
            raise ConfigError(f"prompt {text!r}: {fault}")
    lengths = {
        name: len(values) for name, values in (("class_labels", labels), ("prompt", prompts)) if values is not None
    }
    if empty := [name for name, length in lengths.items() if not length]:
        raise ConfigError(f"{empty[0]} is an empty list; leave it out for no condition")
    ids = None
    if labels is not None:
        warn_of_numbers_as_names(labels, config.class_names)
        ids = class_ids(labels, config.class_names, config.num_classes)
    count = max(lengths.values(), default=1)
    for name, length in lengths.items():
        if length not in (1, count):
            raise ConfigError(f"{name} has {length} entries where the other condition has {count}")
    whole = Rule(
        f"a positive multiple of the {count} condition(s)",
        lambda number: is_integer(number) and number % count == 0,
        as_integer,
    )
    each = require("num_images", count if num_images is None else num_images, whole) // count
    return Requested(_spread(ids, count, each), _spread(prompts, count, each))


def condition_of(
    request: Requested,
    config: GeneratorConfig,
    text_encoder: TextEncoder | None,
    device: torch.device,
    one_by_one: bool = False,
) -> Condition:
    """The generator's condition of a batch of pictures.

    Args:
        request: their conditions.
        config: config of the generator.
        text_encoder: needed if the generator is conditional on text.
        device: where the generator is.
        one_by_one: encode each text by itself, so that its features do not depend on the batch.
    """
    labels = features = mask = None
    if config.num_classes:
        ids = [NULL_CLASS if label is None else label for label in request.labels]
        labels = torch.tensor(ids, device=device)
    if config.text_dim and text_encoder is not None:
        prompts = [prompt or "" for prompt in request.prompts]
        if one_by_one:
            unique = list(dict.fromkeys(prompts))
            rows = [unique.index(prompt) for prompt in prompts]
            features, mask = (x[rows] for x in text_encoder.encode(unique, batch_size=1))
        else:
            features, mask = text_encoder.encode(prompts)
        features, mask = features.to(device), mask.to(device)
    return Condition(labels, features, mask)


def check_call(seed: int, batch_size: int) -> tuple[int, int]:
    """Check what every way of sampling takes; returns both as Python's integers.

    Raises:
        ConfigError: a seed out of range, or a batch size below 1.
    """
    return require("seed", seed, SAMPLE_SEED), require("batch_size", batch_size, integer())


def _spread(values: list[Value] | None, count: int, each: int) -> list[Value | None]:
    """``count`` values, each repeated; a single one, or None instead of a list, is used for all."""
    given: list[Value | None] = list(values) if values else [None]
    return [value for value in given * (count // len(given)) for _ in range(each)]


def _is_label(value: object) -> TypeGuard[ClassLabel]:
    plain = as_integer(value)
    return isinstance(plain, str | int) and not isinstance(plain, bool)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _as_list(values: object, fits: Callable[[object], TypeGuard[Value]], message: str) -> list[Value] | None:
    if values is None:
        return None
    several: list[object] = [values]
    if isinstance(values, Iterable) and not isinstance(values, str) and getattr(values, "ndim", None) != 0:
        several = list(values)
    fitting = [value for value in several if fits(value)]
    if len(fitting) < len(several):
        raise ConfigError(f"{message}, got {values!r}")
    return fitting
