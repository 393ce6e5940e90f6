"""Pure picture functions: conversion to RGB, ADM crops, pixels in [-1, 1], the one uint8 conversion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin

from wvq.errors import DataError
from wvq.files.atomic import whole_file
from wvq.settings.size import Size, height_width


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture as 8-bit RGB, upright.

    EXIF orientation is applied, transparency (alpha or a transparent palette entry) is composited on white, and 16-bit
    grey is scaled so that 65,535 becomes 255; palette, grey, 1-bit, CMYK and the other 8-bit modes are converted by
    Pillow. Of an animation (GIF, APNG, WebP) the frame shown is taken: the first one of a file just opened. 16-bit
    colour never arrives here: Pillow opens it with the upper 8 bits alone.

    Raises:
        DataError: the mode has no defined range or no conversion (32-bit float, LAB).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which turns a 16-bit picture white.
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)  # 65535 * 255 + 32767 fits in 32 bits
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "LAB"):
        raise DataError(f"pictures in Pillow's mode {image.mode} are not supported: convert them to RGB PNG files")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def halve(image: Image.Image, box: Size | tuple[int, int], inside: bool = False) -> Image.Image:
    """Halve a picture with a box filter as long as it still covers a box, or fills it from inside, twice over.

    This is the first step of every crop and pad: bicubic resizing alone skips pixels at large ratios.

    Args:
        image: the picture.
        box: the side of a square, or height and width.
        inside: whether the picture is to fit inside the box and not to cover it.
    """
    while _factor(image, box, inside) <= 0.5:
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)
    return image


def _factor(image: Image.Image, box: Size | tuple[int, int], inside: bool) -> float:
    """What the picture's sides are multiplied by so that it just covers the box, or just fits inside."""
    height, width = height_width(box)
    factors = height / image.height, width / image.width
    return min(factors) if inside else max(factors)


def resize_to(image: Image.Image, box: tuple[int, int], inside: bool = False) -> Image.Image:
    """A picture resized so that it just covers a box, or just fits inside; other arguments as for :func:`halve`."""
    image = halve(image, box, inside)
    factor, (height, width) = _factor(image, box, inside), box
    if factor == 1:
        return image
    # max: rounding must not lose the last pixel of a side.
    new_width = max(1 if inside else width, round(image.width * factor))
    new_height = max(1 if inside else height, round(image.height * factor))
    return image.resize((new_width, new_height), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: Size | tuple[int, int]) -> Image.Image:
    """The central part of a size, after the picture was resized so that it just covers it (as ADM prepares ImageNet,
    Dhariwal and Nichol 2021: box-filter halvings, then bicubic). Returns an RGB picture.
    """
    height, width = height_width(size)
    image = resize_to(to_rgb(image), (height, width))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def with_shorter_side(size: Size, pixels: int) -> tuple[int, int]:
    """Height and width of the shape of ``size`` whose shorter side has so many pixels; the longer one rounded up."""
    sides = height_width(size)
    height, width = (-(-side * pixels // min(sides)) for side in sides)
    return height, width


def _times(size: Size, scale: float) -> tuple[int, int]:
    height, width = height_width(size)
    return int(height * scale), int(width * scale)


def _longest_shorter_side(size: Size, min_fraction: float) -> int:
    return math.ceil(min(height_width(size)) / min_fraction)


def largest_resize(size: Size, min_fraction: float, scales: Sequence[float] = ()) -> tuple[int, int]:
    """Height and width of the largest box that a picture is made to cover before any crop cuts ``size`` out."""
    boxes = [with_shorter_side(size, _longest_shorter_side(size, min_fraction)), *(_times(size, s) for s in scales)]
    height, width = map(max, zip(*boxes, strict=True))
    return height, width


def random_crop(image: Image.Image, size: Size, min_fraction: float, rng: np.random.Generator) -> Image.Image:
    """A random part of a size, of a picture that covers between that size and ``1 / min_fraction`` of it (as ADM
    augments ImageNet). Returns an RGB picture; draws three numbers from ``rng``.
    """
    height, width = height_width(size)
    shorter_side = int(rng.integers(min(height, width), _longest_shorter_side(size, min_fraction) + 1))
    image = resize_to(to_rgb(image), with_shorter_side(size, shorter_side))
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


TEN = 10  # crops of :func:`ten_crop`


def ten_crop(image: Image.Image, size: Size, fraction: float, version: int) -> Image.Image:
    """Version 0..9 of a picture: the central crop; the four corners of its central part, each keeping ``fraction`` of
    its sides; and the mirror images of these five. Returns an RGB picture of a size.

    The corners are those of the part that :func:`center_crop` keeps, as that is all the tokenizer is measured on.
    """
    corners = with_shorter_side(size, _longest_shorter_side(size, fraction))
    return _one_of_ten(image, size, height_width(size) if version % (TEN // 2) == 0 else corners, version)


def scaled_ten_crop(image: Image.Image, size: Size, scales: Sequence[float], version: int) -> Image.Image:
    """Version 0 to 10 x scales - 1 of a picture: for each scale in turn the centre, the four corners and the mirror
    images of these five, all of the central part that measures ``scale x size`` pixels (rounded down) when the
    picture just covers it. Returns an RGB picture of a size.

    Scales 1.1 and 1.05 are the crops that LlamaGen (arXiv 2406.06525) trains on.
    """
    return _one_of_ten(image, size, _times(size, scales[version // TEN]), version % TEN)


def _one_of_ten(image: Image.Image, size: Size, box: tuple[int, int], version: int) -> Image.Image:
    # Of the central part, resized to the box: its centre, its corners, and the mirror images of these.
    height, width = height_width(size)
    left, top = corner(version, box[1] - width, box[0] - height)
    image = center_crop(image, box).crop((left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if version >= TEN // 2 else image


def corner(version: int, right: int, down: int) -> tuple[int, int]:
    """Left and top of what one of ten versions places: in the middle of the room that there is, or in a corner."""
    return ((right // 2, down // 2), (0, 0), (right, 0), (0, down), (right, down))[version % (TEN // 2)]


def to_pixels(image: Image.Image) -> torch.Tensor:
    """A picture as a float32 tensor (3, H, W) in [-1, 1]: ``x / 127.5 - 1``."""
    values = np.array(image if image.mode == "RGB" else to_rgb(image), dtype=np.float32)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous().div_(127.5).sub_(1)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Float pixels in [-1, 1] as uint8 of the same shape: clamped, rounded half up. Inverse of :func:`to_pixels`.

    Raises:
        DataError: the pixels are not of a floating type or contain NaN.
    """
    if not pixels.is_floating_point():
        raise DataError(f"pixels must be floating point in [-1, 1], not {pixels.dtype}")
    if torch.isnan(pixels).any():
        raise DataError("pixels contain NaN: the model that made them has diverged")
    return pixels.detach().float().add(1).mul(127.5).add(0.5).floor().clamp_(0, 255).to(torch.uint8)


def from_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 of any shape as float32 in [-1, 1], those of :func:`to_pixels` to the bit on every device."""
    # By a tensor: a GPU divides by a plain number through its inverse, which rounds differently.
    return pixels.float().div_(torch.full((), 127.5, device=pixels.device)).sub_(1)


def to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """Float pixels (3, H, W) or (B, 3, H, W) in [-1, 1] as a list of RGB pictures (one for a single picture).

    Raises:
        DataError: another shape, or what :func:`to_uint8` refuses.
    """
    if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
        raise DataError(f"pixels must have shape (3, H, W) or (B, 3, H, W), not {tuple(pixels.shape)}")
    return uint8_to_pil(to_uint8(pixels if pixels.ndim == 4 else pixels[None]))


def uint8_to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """Pictures uint8 (B, 3, H, W) as a list of RGB pictures."""
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def save_png(image: Image.Image, file: str | Path, text: PngImagePlugin.PngInfo | None = None) -> None:
    """Write a PNG, with text chunks if given; the file is complete or absent."""
    with whole_file(file) as partial:
        try:
            image.save(partial, format="PNG", pnginfo=text)
        except OSError as error:  # Pillow's error does not name the file
            raise OSError(error.errno, error.strerror or str(error), str(file)) from error
