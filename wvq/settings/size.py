"""The size of pictures: the side of a square, or height and width. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from typing_extensions import TypeIs

from wvq.checks import Rule, is_integer
from wvq.errors import ConfigError

Size: TypeAlias = int | list[int]  # the side of a square in pixels, or [height, width]


def is_size(value: object) -> TypeIs[Size]:
    """Whether a value is the side of a square, or [height, width], of integers of at least 1."""
    return is_integer(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_integer, value)))


SIZE = Rule("an integer of at least 1, or [height, width]", is_size)


def written_size(value: object) -> object:
    """A size as files hold it: a square is its side. Any value that is no size unchanged, for a check to refuse.

    Args:
        value: a size, a tuple, or a text such as ``256x384`` (height x width).
    """
    if isinstance(value, str) and (sides := re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", value)):
        value = list(map(int, sides.groups()))
    if isinstance(value, list | tuple):
        return value[0] if len(value) == 2 and value[0] == value[1] else list(value)
    return value


def as_size(name: str, value: object) -> Size:
    """A size in any of its forms, as files hold it.

    Raises:
        ConfigError: it is none; the message calls it by ``name``.
    """
    value = written_size(value)
    if not is_size(value):
        raise ConfigError(f"{name} must be {SIZE.expected}, got {value!r}")
    return value


def size_of(shape: Iterable[int]) -> Size:
    """The size of pictures whose height and width are the last two of a shape."""
    height, width = list(shape)[-2:]
    return height if height == width else [height, width]


def height_width(size: Size | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def size_text(size: Size) -> str:
    """The size for readers: ``256``, or ``256 x 384``."""
    return " x ".join(map(str, [size] if isinstance(size, int) else size))
