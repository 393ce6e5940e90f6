"""Features of sets of pictures, real or drawn, with the identity of each set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TypedDict, TypeVar

from torch import Tensor

from wvq.data.crops import CroppedPictures
from wvq.settings.size import Size

AnyPictures = TypeVar("AnyPictures", bound=CroppedPictures)


class PictureIdentity(TypedDict):
    """The identity of a set of pictures, for a result's settings.

    ``sha256`` is the hash over the hashes of the pictures' uint8 pixels, in order (of an archive, that of its file);
    ``image_size`` is their size in pixels, ``crop`` how they were cut out of the originals.
    """

    sha256: str
    num_images: int
    image_size: Size
    crop: str


@dataclass
class PictureFeatures:
    """Features of N pictures in one order.

    Attributes:
        features: (N, D) float32 on the CPU.
        logits: (N, classes) float32 on the CPU, or None if the network has none.
        spatial: (N, D') float32 on the CPU, features that keep the place, or None if the network has none.
        sha256: hash over the hashes of the pictures' uint8 pixels, in order.
        image_size: size of the pictures in pixels.
        crop_recipe: how they were cut out of the originals; ``none`` for drawn pictures.
        indices: which pictures of the data set these are, in order; empty for drawn pictures.
        num_unreadable: pictures of the data set that were looked at and left out, because they cannot be read.
        warnings: lines for a result about those.
    """

    features: Tensor
    logits: Tensor | None
    sha256: str
    image_size: Size
    crop_recipe: str
    indices: list[int] = field(default_factory=list)
    num_unreadable: int = 0
    warnings: list[str] = field(default_factory=list)
    spatial: Tensor | None = None

    def part(self, rows: slice | Tensor) -> PictureFeatures:
        """Some of the pictures; the hash stays that of the whole set."""
        logits = None if self.logits is None else self.logits[rows]
        spatial = None if self.spatial is None else self.spatial[rows]
        return replace(self, features=self.features[rows], logits=logits, spatial=spatial)

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.features)

    def description(self) -> PictureIdentity:
        """The identity of the set, for a result's settings."""
        return PictureIdentity(
            sha256=self.sha256, num_images=self.num_images, image_size=self.image_size, crop=self.crop_recipe
        )


def picture_digests(images: Tensor) -> list[bytes]:
    """SHA-256 of each picture's pixels, of uint8 (B, 3, H, W)."""
    return [hashlib.sha256(picture.tobytes()).digest() for picture in images.cpu().contiguous().numpy()]


def evaluation_view(dataset: AnyPictures) -> AnyPictures:
    """The data set under the one crop, or pad, that evaluations use: centre, no flip."""
    crop, *_ = dataset.crop_recipe.split(", pad")
    return dataset if crop == "center" else dataset.with_crop(crop="center", flip=False)
