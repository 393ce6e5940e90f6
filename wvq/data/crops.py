"""How the pictures of a set are cropped and mirrored, the same for sets at rest and for streams."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from typing_extensions import Self

from wvq.data.pixels import TEN, center_crop, random_crop, scaled_ten_crop, ten_crop
from wvq.settings.data import DataConfig


class CroppedPictures(Dataset[dict[str, Any]]):
    """What all sets of pictures share: how a picture is cropped and mirrored.

    Args:
        class_names: names by label id; empty without classes.
        settings: size, crop, flip, seed, and what happens with pictures that cannot be read; no other field counts.

    Attributes:
        image_size: S, the side in pixels.
        crop: ``random``, ``ten`` or ``center``.
        unreadable: ``skip`` or ``refuse``.
        spread: whether ``ten`` begins with another crop for each picture; see :meth:`spread_versions`.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(self, class_names: tuple[str, ...], settings: DataConfig):
        settings.check()
        self.class_names = tuple(class_names)
        self.settings = replace(settings)  # a later change of the caller's is none of this set
        self.image_size, self.crop, self.unreadable = settings.image_size, settings.crop, settings.unreadable
        self.spread = False

    @property
    def crop_recipe(self) -> str:
        """How pictures are cut out, such as ``random(0.8)+flip``."""
        settings = self.settings
        if settings.crop_scales:
            return f"ten({', '.join(f'x{scale:g}' for scale in settings.crop_scales)})"
        crop = self.crop if self.crop == "center" else f"{self.crop}({settings.min_crop_fraction:g})"
        return crop + ("+flip" if settings.flip else "")

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
        """The same pictures for training: under ``ten`` each begins with another crop.

        A pass then shows all of them about equally often, and each picture still has every crop once in as many passes.
        Otherwise all pictures of pass p have crop p, as an export asks for.
        """
        spread = copy.copy(self)
        spread.spread = True
        return spread

    def _cut(self, image: Image.Image, index: int, position: int, turn: int, mirrors: bool) -> Image.Image:
        """The square of a picture.

        Args:
            image: the picture.
            index: its number.
            position: with the seed it decides on random crop and flip.
            turn: how often the picture was drawn before, for ``ten``.
            mirrors: whether its mirror image means the same.
        """
        rng = np.random.default_rng((self.settings.seed, position))
        if self.crop == "random":
            image = random_crop(image, self.image_size, self.settings.min_crop_fraction, rng)
        elif self.crop == "ten":
            image = self._one_of_ten(image, index, turn, mirrors)
        else:
            image = center_crop(image, self.image_size)
        if self.settings.flip and rng.random() < 0.5 and mirrors:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _one_of_ten(self, image: Image.Image, index: int, turn: int, mirrors: bool) -> Image.Image:
        """The crop of a picture when it is drawn for the ``turn``-th time."""
        versions = self.num_versions
        if self.spread:
            # Steps without a common divisor reach all versions, and do not show five mirror images in a row.
            step = next(step for step in (7, 13, 17) if versions % step)
            turn = int(np.random.default_rng((self.settings.seed, index)).integers(versions)) + step * turn
        version = turn % versions
        if not mirrors and version % TEN >= TEN // 2:
            version -= TEN // 2
        if self.settings.crop_scales:
            return scaled_ten_crop(image, self.image_size, self.settings.crop_scales, version)
        return ten_crop(image, self.image_size, self.settings.min_crop_fraction, version)
