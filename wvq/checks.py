"""The one way to check the fields of a recipe, a group of settings, a model config or a file. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from wvq.errors import ConfigError, near_match

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Checker:
    """Checks fields of one object; the first value that is not as wanted is a ConfigError that names its field.

    Args:
        settings: the object.
        prefix: stands before the field's name in messages, such as ``train`` in ``train.batch_size``.
    """

    def __init__(self, settings: object, prefix: str = ""):
        self.settings, self.prefix = settings, f"{prefix}." if prefix else ""

    def __call__(self, name: str, wanted: str, holds: Callable[[Any], bool]) -> None:
        """Check one field by a rule of its own.

        Args:
            name: the field.
            wanted: what it must be, in words.
            holds: whether a value is that.

        Raises:
            ConfigError: it is something else.
        """
        self._check(name, wanted, holds)

    def integers(self, *names: str, minimum: int = 1, or_none: bool = False) -> None:
        """Check that these fields are integers of at least ``minimum``."""
        for name in names:
            self._check(name, f"an integer of at least {minimum}", lambda value: is_integer(value, minimum), or_none)

    def seeds(self, *names: str) -> None:
        """Check that these fields are seeds that every random generator in use takes."""
        for name in names:
            self._check(name, "an integer in [0, 2**32)", lambda value: is_integer(value, 0) and value < 2**32)

    def numbers(self, *names: str, minimum: float = 0, or_none: bool = False) -> None:
        """Check that these fields are finite numbers of at least ``minimum``."""
        for name in names:
            self._check(name, f"a number of at least {minimum}", lambda value: is_number(value, minimum), or_none)

    def positive(self, *names: str, or_none: bool = False) -> None:
        """Check that these fields are finite numbers above 0."""
        for name in names:
            self._check(name, "a number above 0", lambda value: is_number(value) and value > 0, or_none)

    def within(self, interval: str, *names: str, or_none: bool = False) -> None:
        """Check that these fields are numbers in an interval such as ``[0, 1)`` or ``(0, inf]``."""
        low, high = map(float, interval[1:-1].split(","))

        def holds(value: object) -> bool:
            if not isinstance(value, int | float) or isinstance(value, bool):
                return False
            above = low <= value if interval[0] == "[" else low < value
            return above and (value <= high if interval[-1] == "]" else value < high)

        for name in names:
            self._check(name, f"in {interval}", holds, or_none)

    def one_of(self, name: str, options: Iterable[object]) -> None:
        """Check that a field is one of the options; the message names the near match."""
        known = list(options)
        near = near_match(str(getattr(self.settings, name)), known)
        self._check(name, f"one of {', '.join(map(str, known))}{near}", known.__contains__)

    def flags(self, *names: str) -> None:
        """Check that these fields are booleans."""
        for name in names:
            self._check(name, "true or false", lambda value: isinstance(value, bool))

    def texts(self, *names: str, or_none: bool = False) -> None:
        """Check that these fields are texts."""
        for name in names:
            self._check(name, "a text", lambda value: isinstance(value, str), or_none)

    def _check(self, name: str, wanted: str, holds: Callable[[Any], bool], or_none: bool = False) -> None:
        value = getattr(self.settings, name)
        if not (holds(value) or (or_none and value is None)):
            raise ConfigError(f"{self.prefix}{name} must be {wanted}{', or null' if or_none else ''}, got {value!r}")


def check_groups(recipe: DataclassInstance) -> None:
    """Check each group of settings of a recipe.

    Raises:
        ConfigError: a value is out of range; the message names the field with its group.
    """
    for field in fields(recipe):
        if check := getattr(getattr(recipe, field.name), "check", None):
            check()


def is_integer(value: object, minimum: int = 1) -> bool:
    """Whether a value is an integer, no boolean, of at least ``minimum``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value: object, minimum: float = 0.0) -> bool:
    """Whether a value is a finite number, no boolean, of at least ``minimum``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value < float("inf")


def as_list(value: object) -> object:
    """Tuples and lists as a list of their own; anything else as it is, for a check to refuse."""
    return list(value) if isinstance(value, list | tuple) else value
