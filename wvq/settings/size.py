"""The size of pictures: the side of a square, or height and width. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from typing_extensions import TypeIs

from wvq.checks import Rule, as_integer, is_integer

Size: TypeAlias = int | list[int]  # the side of a square in pixels, or [height, width]


def is_size(value: object) -> TypeIs[Size]:
    """Whether a value is the side of a square, or [height, width], of integers of at least 1."""
    return is_integer(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_integer, value)))


def _written(value: object) -> object:
    """A size as files hold it: a square is its side, other sizes are lists; what is no size unchanged."""
    if isinstance(value, str):
        sides = [_number(text) for text in re.split("[xX×]", value)]
        value = sides if len(sides) == 2 else sides[0] if len(sides) == 1 else value
    if isinstance(value, list | tuple):
        written = list(map(as_integer, value))
        return written[0] if len(written) == 2 and written[0] == written[1] else written
    return as_integer(value)


def _number(text: str) -> float | str:
    """The number that a text holds; another text unchanged."""
    try:
        return float(text)
    except ValueError:
        return text


SIZE = Rule("an integer of at least 1, or [height, width]", is_size, _written)


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
