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


def halve(image: Image.Image, size: int) -> Image.Image:
    """Halve a picture with a box filter while its shorter side is at least ``2 * size``.

    This is the first step of both crops: bicubic resizing alone skips pixels at large ratios.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def _resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    image = halve(image, size)
    scale = size / min(image.size)
    if scale == 1:
        return image
    # max: rounding must not lose the last pixel of the shorter side.
    new_size = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
    return image.resize(new_size, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central ``size`` x ``size`` square after resizing the shorter side to ``size`` (as ADM prepares ImageNet,
    Dhariwal and Nichol 2021: box-filter halvings, then bicubic). Returns an RGB picture.
    """
    image = _resize_shorter_side(to_rgb(image), size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def largest_resize(size: int, min_fraction: float, scales: Sequence[float] = ()) -> int:
    """Largest length, in pixels, to which any crop resizes the shorter side before it cuts ``size`` pixels out."""
    return max([math.ceil(size / min_fraction), *(int(size * scale) for scale in scales)])


def random_crop(image: Image.Image, size: int, min_fraction: float, rng: np.random.Generator) -> Image.Image:
    """A random ``size`` x ``size`` square that keeps between ``min_fraction`` and all of the shorter side (as ADM
    augments ImageNet). Returns an RGB picture; draws three numbers from ``rng``.
    """
    shorter_side = int(rng.integers(size, largest_resize(size, min_fraction) + 1))
    image = _resize_shorter_side(to_rgb(image), shorter_side)
    left = int(rng.integers(image.width - size + 1))
    top = int(rng.integers(image.height - size + 1))
    return image.crop((left, top, left + size, top + size))


TEN = 10  # crops of :func:`ten_crop`


def ten_crop(image: Image.Image, size: int, fraction: float, version: int) -> Image.Image:
    """Version 0..9 of a picture: the central crop; the four corners of its central part, each keeping ``fraction`` of
    the shorter side; and the mirror images of these five. Returns an RGB picture of ``size`` x ``size``.

    The corners are those of the square that :func:`center_crop` keeps, as that is all the tokenizer is measured on.
    """
    return _one_of_ten(image, size, size if version % (TEN // 2) == 0 else largest_resize(size, fraction), version)


def scaled_ten_crop(image: Image.Image, size: int, scales: Sequence[float], version: int) -> Image.Image:
    """Version 0 to 10 x scales - 1 of a picture: for each scale in turn the centre, the four corners and the mirror
    images of these five, all of the central square that measures ``scale x size`` pixels (rounded down) when the
    shorter side is resized to it. Returns an RGB picture of ``size`` x ``size``.

    Scales 1.1 and 1.05 are the crops that LlamaGen (arXiv 2406.06525) trains on.
    """
    return _one_of_ten(image, size, int(size * scales[version // TEN]), version % TEN)


def _one_of_ten(image: Image.Image, size: int, side: int, version: int) -> Image.Image:
    # Of the central square, resized to ``side`` pixels: its centre, its corners, and the mirror images of these.
    corner, gap = version % (TEN // 2), side - size
    left, top = ((gap // 2, gap // 2), (0, 0), (gap, 0), (0, gap), (gap, gap))[corner]
    image = center_crop(image, side).crop((left, top, left + size, top + size))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if version >= TEN // 2 else image


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
