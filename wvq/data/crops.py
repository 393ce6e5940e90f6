"""How the pictures of a set are cropped or padded and mirrored, the same for sets at rest and for streams."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from typing_extensions import Self

from wvq.data.padding import center_pad, random_pad, ten_pad
from wvq.data.pixels import TEN, center_crop, largest_resize, random_crop, scaled_ten_crop, ten_crop
from wvq.settings.data import DataConfig
from wvq.settings.size import height_width


class CroppedPictures(Dataset[dict[str, Any]]):
    """What all sets of pictures share: how a picture is cropped or padded, and mirrored.

    Args:
        class_names: names by label id; empty without classes.
        settings: size, fit, crop, flip, seed, and what happens with pictures that cannot be read; no other field
            counts.

    Attributes:
        image_size: in pixels: the side of a square, or [height, width].
        crop: ``random``, ``ten`` or ``center``.
        unreadable: ``skip`` or ``refuse``.
        spread: whether ``ten`` begins with another crop for each picture; see :meth:`spread_versions`.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(self, class_names: tuple[str, ...], settings: DataConfig):
        settings.check()
        self.class_names = tuple(class_names)
        self.settings = replace(settings)  # a later change by the caller does not affect this set
        self.image_size, self.crop, self.unreadable = settings.size, settings.crop, settings.unreadable
        self.spread = False

    @property
    def crop_recipe(self) -> str:
        """How pictures are cut out, such as ``random(0.8)+flip``, or padded: ``center, pad(auto)``."""
        settings = self.settings
        if settings.crop_scales:
            return f"ten({', '.join(f'x{scale:g}' for scale in settings.crop_scales)})"
        crop = self.crop if self.crop == "center" else f"{self.crop}({settings.min_crop_fraction:g})"
        pad = f", pad({settings.pad_color})" if settings.fit == "pad" else ""
        return crop + ("+flip" if settings.flip else "") + pad

    def with_crop(self, crop: str | None = None, flip: bool | None = None) -> Self:
        """The same pictures under another crop (``random``, ``ten``, ``center``) or flip; decoded ones are shared."""
        view = copy.copy(self)
        view.settings = replace(
            self.settings,
            crop=self.crop if crop is None else crop,
            flip=self.settings.flip if flip is None else flip,
            crop_scales=self.settings.crop_scales if crop in (None, "ten") else None,
            unreadable=self.unreadable,
        )
        view.settings.check()
        view.crop, view.spread = view.settings.crop, False
        return view

    @property
    def num_versions(self) -> int:
        """How many crops ``ten`` takes in turn."""
        return TEN * len(self.settings.crop_scales or (1,))

    def spread_versions(self) -> Self:
        """The same pictures for training: under ``ten`` each picture starts with a crop of its own.

        A pass then shows all of them about equally often, and each picture still has every crop once in as many passes.
        Otherwise all pictures of pass p have crop p, as an export needs.
        """
        spread = copy.copy(self)
        spread.spread = True
        return spread

    def _fitted(self, image: Image.Image, index: int, position: int, turn: int, mirrors: bool) -> Image.Image:
        """The picture at its size.

        Args:
            image: the picture.
            index: its number.
            position: with the seed it decides on random crop and flip.
            turn: how often the picture was drawn before, for ``ten``.
            mirrors: whether its mirror image means the same.
        """
        rng = np.random.default_rng((self.settings.seed, position))
        if self.crop == "ten":
            image = self._one_of_ten(image, self._version(index, turn, mirrors))
        else:
            image = self._padded(image, rng) if self.settings.fit == "pad" else self._cut(image, rng)
        if self.settings.flip and rng.random() < 0.5 and mirrors:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _cut(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.crop == "random":
            return random_crop(image, self.image_size, self.settings.min_crop_fraction, rng)
        return center_crop(image, self.image_size)

    def _padded(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        settings = self.settings
        if self.crop == "random":
            return random_pad(image, self.image_size, settings.min_crop_fraction, settings.pad_color, rng)
        return center_pad(image, self.image_size, settings.pad_color)

    def _version(self, index: int, turn: int, mirrors: bool) -> int:
        """Which crop a picture has when it is drawn for the ``turn``-th time."""
        versions = self.num_versions
        if self.spread:
            # Steps without a common divisor reach all versions, and do not show five mirror images in a row.
            step = next(step for step in (7, 13, 17) if versions % step)
            turn = int(np.random.default_rng((self.settings.seed, index)).integers(versions)) + step * turn
        version = turn % versions
        if not mirrors and version % TEN >= TEN // 2:
            version -= TEN // 2
        return version

    def _one_of_ten(self, image: Image.Image, version: int) -> Image.Image:
        settings = self.settings
        if settings.fit == "pad":
            return ten_pad(image, self.image_size, settings.min_crop_fraction, settings.pad_color, version)
        if settings.crop_scales:
            return scaled_ten_crop(image, self.image_size, settings.crop_scales, version)
        return ten_crop(image, self.image_size, settings.min_crop_fraction, version)


def largest_box(settings: DataConfig) -> tuple[tuple[int, int], bool]:
    """The largest box that a picture is resized for, and whether it is to fit inside."""
    if settings.fit == "pad":
        return height_width(settings.size), True
    return largest_resize(settings.size, settings.min_crop_fraction, settings.crop_scales or ()), False
