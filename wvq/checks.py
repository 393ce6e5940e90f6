"""The one way to check a value. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wvq.errors import ConfigError


class Checker:
    """Holds the fields of one settings object against their ranges."""

    def __init__(self, settings, prefix: str):
        self.settings, self.prefix = settings, f"{prefix}." if prefix else ""

    def __call__(self, name: str, wanted: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self.settings, name)
        if not holds(value):
            raise ConfigError(f"{self.prefix}{name} must be {wanted}, got {value!r}")


def is_integer(value, minimum: int = 1) -> bool:
    """Whether a value of a config is an integer, no boolean, of at least ``minimum``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value, minimum: float = 0.0) -> bool:
    """Whether a value of a config is a finite number, no boolean, of at least ``minimum``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value < float("inf")


def as_list(value):
    """Tuples and lists as a list of their own; anything else as it is, for a check to refuse."""
    return list(value) if isinstance(value, list | tuple) else value
