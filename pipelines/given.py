"""What a call keeps of given pictures: their codes outside of a mask, or those of their first scales."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from wvq.checks import Rule, as_integer, is_integer, require
from wvq.data.layout import codes_shape, unflatten_codes
from wvq.errors import ConfigError, DataError
from wvq.generator.base.draws import check_fixed
from wvq.generator.base.filters import FREE
from wvq.models.scale_maps import average_to
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.picture_formats import PictureInput, as_pictures
from wvq.tokenizer.processing import ImageProcessor

# A code is drawn anew where more than this share of its pixels is white. At a lower one, or at this one itself, which
# the coarsest code has where half of the picture is redrawn, coarse codes would change what is kept.
COVERED = 0.5


@dataclass(frozen=True)
class GivenPictures:
    """The codes that N pictures keep of given ones, and where these are from.

    Attributes:
        codes: (N, ...) int64 in the shape of the layout, FREE where they are drawn.
        identity: hashes of the pictures and masks, one for all or one a picture, and the number of scales, by the names
            of the arguments.
        sources: the same of each of the N pictures, with a file's name in place of its hash.
    """

    codes: torch.Tensor
    identity: dict[str, list[str] | int]
    sources: list[dict[str, str | int]]


class _Given(NamedTuple):
    """A picture of one argument: its pixels (1, 3, H, W) in [-1, 1], its own width and height, its file, its hash."""

    pixels: torch.Tensor
    size: tuple[int, int]
    file: str | None
    sha256: str


@torch.no_grad()
def given_pictures(
    tokenizer: WassersteinVQModel,
    count: int,
    image: PictureInput | None,
    mask_image: PictureInput | None = None,
    keep_scales: int | None = None,
) -> GivenPictures | None:
    """The codes that a call keeps of given pictures; None if there are none.

    Pictures are encoded one by one, so that the codes of one do not depend on the others.

    Args:
        tokenizer: of the pipeline.
        count: pictures N of the call.
        image: one picture for all, or one a picture, as :func:`wvq.tokenizer.picture_formats.as_pictures` takes them;
            they get the tokenizer's size as :class:`wvq.tokenizer.processing.ImageProcessor` brings them to it.
        mask_image: one for all, or one a picture, of the size of its picture: white, or true, where it is drawn anew.
            A code is drawn where more than half of the pixels of its place are white: of its place at its own scale,
            and all codes of a position alike.
        keep_scales: scales, the coarsest first, whose codes are kept whatever the mask; of multi-scale codes.

    Raises:
        ConfigError: one of the arguments without another that it needs; another number of pictures or masks than one or
            N; a mask of another size than its picture, or one that leaves nothing to draw; or ``keep_scales`` out of
            range, or for other codes.
        DataError: what is no picture.
    """
    config = tokenizer.config
    kept = _kept_scales(config, keep_scales)
    if image is None:
        for name, value in (("mask_image", mask_image), ("keep_scales", keep_scales)):
            if value is not None:
                raise ConfigError(f"{name} is given without image, the picture that is kept in part; give both")
        return None
    if mask_image is None and keep_scales is None:
        other = ", or keep_scales" if config.scales else ""
        raise ConfigError(
            f"image is given without what is kept of it; give mask_image, white where it is drawn anew{other}"
        )
    given = {"image": _read("image", image, count, ImageProcessor.of_tokenizer(config))}
    if mask_image is not None:
        # What is beside a padded picture belongs to its edge.
        given["mask_image"] = _read(
            "mask_image", mask_image, count, ImageProcessor(config.image_size, config.fit, "edge")
        )
        _require_sizes(given["image"], given["mask_image"])
    codes = torch.cat([tokenizer.encode(one.pixels.to(tokenizer.device)).codes.cpu() for one in given["image"]])
    drawn = _drawn(config, given.get("mask_image"), kept)
    flat = torch.where(drawn, FREE, codes.flatten(1)).expand(count, -1)
    identity: dict[str, list[str] | int] = {name: [one.sha256 for one in ones] for name, ones in given.items()}
    sources: list[dict[str, str | int]] = [
        {name: _of(ones, index).file or _of(ones, index).sha256 for name, ones in given.items()}
        for index in range(count)
    ]
    if keep_scales is not None:
        identity["keep_scales"] = kept
        for source in sources:
            source["keep_scales"] = kept
    return GivenPictures(unflatten_codes(flat, config.code_layout), identity, sources)


def codes_for_each(fixed_codes: torch.Tensor, count: int, layout: dict, num_codes: int) -> torch.Tensor:
    """Given codes (N, ...) of N pictures, from these or from those of one picture for all.

    Raises:
        ConfigError: another shape or kind, or a code out of range.
    """
    shape = (count, *codes_shape(layout))
    codes = torch.as_tensor(fixed_codes)
    codes = codes.expand(shape) if tuple(codes.shape) == shape[1:] else codes
    check_fixed(codes, shape, num_codes)
    return codes


def _kept_scales(config: WassersteinVQConfig, keep_scales: int | None) -> int:
    if keep_scales is None:
        return 0
    if config.scales is None:
        raise ConfigError(
            "keep_scales needs a generator that draws scale by scale, which this one does not: leave it out"
        )
    last = len(config.scales) - 1
    if not last:
        raise ConfigError("keep_scales needs several scales, and this model has one: leave it out")
    rule = Rule(
        f"an integer from 1 to {last} of this model's {last + 1} scales",
        lambda value: is_integer(value) and value <= last,
        as_integer,
    )
    return require("keep_scales", keep_scales, rule)


def _read(name: str, images: PictureInput, count: int, processor: ImageProcessor) -> list[_Given]:
    """The pictures of one argument, one or ``count``."""
    given = []
    for source in images if isinstance(images, list | tuple) and images else [images]:
        file = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        try:
            pictures = as_pictures(_without_flags(source) if name == "mask_image" else source)
        except DataError as error:
            raise DataError(f"{name}: {str(error).removeprefix('images: ')}") from error
        for picture in pictures:
            pixels = processor(picture).pixel_values
            given.append(_Given(pixels, picture.size, file, hashlib.sha256(pixels.numpy().tobytes()).hexdigest()))
    if len(given) not in (1, count):
        raise ConfigError(f"{name} has {len(given)} pictures for {count} to draw; give one for all, or one a picture")
    return given


def _of(given: list[_Given], index: int) -> _Given:
    """What belongs to the picture of this number: the one for all, or its own."""
    return given[index % len(given)]


def _without_flags(mask: PictureInput) -> PictureInput:
    """A mask of booleans as black and white; any other as it is."""
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        return mask.float()
    return mask.astype(np.float32) if isinstance(mask, np.ndarray) and mask.dtype == bool else mask


def _require_sizes(images: list[_Given], masks: list[_Given]) -> None:
    for index in range(max(len(images), len(masks))):
        image, mask = _of(images, index).size, _of(masks, index).size
        if image != mask:
            raise ConfigError(
                f"mask_image has {mask[1]} x {mask[0]} pixels and its image {image[1]} x {image[0]}; give a mask of "
                "its picture's size"
            )


def _drawn(config: WassersteinVQConfig, masks: list[_Given] | None, kept: int) -> torch.Tensor:
    """Which codes (N or 1, T) of the flat order are drawn anew."""
    shapes = config.code_layout["shapes"]
    if masks is None:
        parts = [torch.ones(1, math.prod(shape), dtype=torch.bool) for shape in shapes]
    else:
        white = torch.cat([one.pixels for one in masks]).mean(1, keepdim=True) >= 0
        shares = [average_to(white.float(), tuple(shape[:2])).flatten(1) for shape in shapes]
        parts = [
            (share > COVERED).repeat_interleave(math.prod(shape[2:]), 1)
            for share, shape in zip(shares, shapes, strict=True)
        ]
    for part in parts[:kept]:
        part.fill_(False)
    drawn = torch.cat(parts, 1)
    if not bool(drawn.any(1).all()):
        raise ConfigError(
            "mask_image leaves nothing to draw: a code is drawn anew where more than half of its pixels are white; "
            "make the white region larger"
        )
    return drawn
