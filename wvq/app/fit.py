"""The quick start's choice between cropping and padding, by the shapes and the borders of the pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from wvq.data.dataset import ImageDataset
from wvq.data.padding import border_pixels, ground
from wvq.data.pixels import to_rgb
from wvq.errors import UnreadablePictureError
from wvq.settings.size import Size, height_width

LOOKED_AT = 200  # pictures, from all over the set
LONG = 1.2  # a picture is cut if its shape differs by more than this factor from the one that it gets
CUT = 0.1  # share of pictures that are cut from which on padding is considered
PLAIN = 2 / 3  # share of a picture's border that is of one colour where it stands on a plain ground
LEVELS = 16  # how far a pixel of that colour may be from it in each channel, of 255
WHITE = 240  # levels of a white ground, at the least
ALL_WHITE = 0.9  # share of plain pictures on white from which on all are padded with white


@dataclass
class FitChoice:
    """How pictures of other shapes get their size, and why.

    Args:
        fit: ``crop`` or ``pad``.
        pad_color: what ``pad`` fills with, as in :class:`wvq.settings.data.DataConfig`.
        reason: a line for terminal and report.
    """

    fit: str
    pad_color: str
    reason: str


def choose_fit(dataset: ImageDataset, requested: str | None = None) -> FitChoice:
    """Pad where a crop would cut a tenth of the pictures or more, and at least half of those stand on a plain ground.

    Then they are drawings: what a crop cuts off is a part of them, and a pad cannot be told from their ground. They are
    padded with white if nearly all of them stand on white, and otherwise each with its own ground.

    Args:
        dataset: the training pictures; up to 200 from all over it are looked at.
        requested: ``crop`` or ``pad`` to take that one; decided by the pictures if None.
    """
    num_pictures, grounds = 0, []  # the ground of each picture that a crop would cut; None if it is not plain
    for index in np.unique(np.linspace(0, len(dataset) - 1, LOOKED_AT).astype(int)).tolist():
        try:
            picture = to_rgb(dataset.picture(index))
        except UnreadablePictureError:
            continue
        num_pictures += 1
        if _is_cut(picture, dataset.image_size):
            grounds.append(_plain_ground(picture))
    plain = [color for color in grounds if color is not None]
    seen = f"of {num_pictures} pictures looked at, a crop would cut {len(grounds)}"
    if grounds:
        seen += f", {len(plain)} of them on a plain ground"
    fit = "pad" if grounds and len(grounds) >= CUT * num_pictures and 2 * len(plain) >= len(grounds) else "crop"
    fit, why = requested or fit, f", as requested; {seen}" if requested else f"; {seen}"
    if fit == "crop":
        return FitChoice(fit, "auto", f"fit: crop{why}")
    white = sum(min(color) >= WHITE for color in plain)
    if plain and white >= ALL_WHITE * len(plain):
        return FitChoice(fit, "white", f"fit: pad with white{why}")
    return FitChoice(fit, "auto", f"fit: pad with the colour of each picture's border{why}")


def _is_cut(picture: Image.Image, size: Size) -> bool:
    height, width = height_width(size)
    ratio = picture.width * height / (picture.height * width)
    return max(ratio, 1 / ratio) > LONG


def _plain_ground(picture: Image.Image) -> tuple[int, int, int] | None:
    """The colour of an RGB picture's border; None if much of the border has another one."""
    color, border = ground(picture), border_pixels(picture).astype(int)
    plain = np.abs(border - color).max(1) <= LEVELS
    return color if plain.mean() >= PLAIN else None
