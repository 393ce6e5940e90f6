"""Pads: the whole picture, scaled to fit inside a size, on a filled ground."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from wvq.data.pixels import TEN, corner, resize_to, to_rgb, with_shorter_side
from wvq.settings.size import Size, height_width


def center_pad(image: Image.Image, size: Size, color: str) -> Image.Image:
    """The picture in the middle, as large as it fits. Returns an RGB picture of the size.

    Args:
        image: the picture.
        size: in pixels.
        color: what fills the rest: ``auto``, ``white`` or ``edge`` (:class:`wvq.settings.data.DataConfig`).
    """
    image = resize_to(to_rgb(image), height_width(size), inside=True)
    right, down = _room(image, size)
    return _fill(image, size, right // 2, down // 2, color)


def random_pad(
    image: Image.Image, size: Size, min_fraction: float, color: str, rng: np.random.Generator
) -> Image.Image:
    """The picture at a random place, between ``min_fraction`` of and as large as it fits; other arguments as above.

    Draws three numbers from ``rng``.
    """
    shorter_side = int(rng.integers(_smallest_shorter_side(size, min_fraction), min(height_width(size)) + 1))
    image = resize_to(to_rgb(image), with_shorter_side(size, shorter_side), inside=True)
    right, down = _room(image, size)
    left = int(rng.integers(right + 1))
    return _fill(image, size, left, int(rng.integers(down + 1)), color)


def ten_pad(image: Image.Image, size: Size, fraction: float, color: str, version: int) -> Image.Image:
    """Version 0..9 of a picture: in the middle, as large as it fits; ``fraction`` as large in the four corners; and the
    mirror images of these five. Other arguments as above.
    """
    if version % (TEN // 2) == 0:
        image = center_pad(image, size, color)
    else:
        box = with_shorter_side(size, _smallest_shorter_side(size, fraction))
        image = resize_to(to_rgb(image), box, inside=True)
        image = _fill(image, size, *corner(version, *_room(image, size)), color)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if version >= TEN // 2 else image


def border_pixels(image: Image.Image) -> np.ndarray:
    """The outermost pixels of an RGB picture, (N, 3) uint8; those of the corners twice."""
    values = np.asarray(image)
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def ground(image: Image.Image) -> tuple[int, int, int]:
    """The colour that an RGB picture stands on: the median of its outermost pixels, channel by channel."""
    red, green, blue = (int(value) for value in np.median(border_pixels(image), axis=0))
    return red, green, blue


def _smallest_shorter_side(size: Size, min_fraction: float) -> int:
    return math.ceil(min(height_width(size)) * min_fraction)


def _room(image: Image.Image, size: Size) -> tuple[int, int]:
    """How far a picture can be moved to the right and down within a size."""
    height, width = height_width(size)
    return width - image.width, height - image.height


def _fill(image: Image.Image, size: Size, left: int, top: int, color: str) -> Image.Image:
    right, down = _room(image, size)
    if color == "edge":
        margins = (top, down - top), (left, right - left), (0, 0)
        return Image.fromarray(np.pad(np.asarray(image), margins, mode="edge"))
    height, width = height_width(size)
    canvas = Image.new("RGB", (width, height), ground(image) if color == "auto" else color)
    canvas.paste(image, (left, top))
    return canvas
