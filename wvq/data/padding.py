"""Pads: the whole picture, scaled to fit inside a size, on a filled ground."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from wvq.data.pixels import TEN, corner, resize_to, to_rgb, with_shorter_side
from wvq.settings.size import Size, height_width


def center_pad(image: Image.Image, size: Size, color: str) -> Image.Image:
    """The picture in the middle, as large as it fits. Returns an RGB picture of a size.

    Args:
        image: the picture.
        size: in pixels.
        color: what fills the rest: ``auto``, ``white`` or ``edge`` (:class:`wvq.settings.data.DataConfig`).
    """
    return _placed(image, size, height_width(size), (0, 0), color)


def random_pad(
    image: Image.Image, size: Size, min_fraction: float, color: str, rng: np.random.Generator
) -> Image.Image:
    """The picture in the middle of a box that has between ``min_fraction`` and all of the size's sides and lies at a
    random place, so that it moves as far as a random crop moves it. Returns an RGB picture; draws three numbers from
    ``rng``.
    """
    height, width = height_width(size)
    shorter_side = int(rng.integers(_smallest_shorter_side(size, min_fraction), min(height, width) + 1))
    box = with_shorter_side(size, shorter_side)
    left = int(rng.integers(width - box[1] + 1))
    return _placed(image, size, box, (left, int(rng.integers(height - box[0] + 1))), color)


def ten_pad(image: Image.Image, size: Size, fraction: float, color: str, version: int) -> Image.Image:
    """Version 0..9 of a picture: that of :func:`center_pad`; the picture in the middle of a box of ``fraction`` of the
    size's sides in each of the four corners; and the mirror images of these five. Returns an RGB picture.
    """
    height, width = height_width(size)
    smaller = with_shorter_side(size, _smallest_shorter_side(size, fraction))
    box = (height, width) if version % (TEN // 2) == 0 else smaller
    image = _placed(image, size, box, corner(version, width - box[1], height - box[0]), color)
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


def _placed(image: Image.Image, size: Size, box: tuple[int, int], corner: tuple[int, int], color: str) -> Image.Image:
    """The picture in the middle of a box (height, width) of a canvas; ``corner`` is the box's left and top."""
    image = resize_to(to_rgb(image), box, inside=True)
    height, width = height_width(size)
    left = corner[0] + (box[1] - image.width) // 2
    top = corner[1] + (box[0] - image.height) // 2
    if color == "edge":
        margins = (top, height - top - image.height), (left, width - left - image.width), (0, 0)
        return Image.fromarray(np.pad(np.asarray(image), margins, mode="edge"))
    canvas = Image.new("RGB", (width, height), ground(image) if color == "auto" else color)
    canvas.paste(image, (left, top))
    return canvas
