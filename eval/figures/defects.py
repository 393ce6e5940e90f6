"""Plain defects of pictures: blank ones, and near copies of another. By pixels, so that they need no network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COARSE = 8  # cells a side: shapes remain, the ripples of a decoder do not
FLAT = 20.0  # of 255: a picture with less contrast is nearly of one colour
FLATTEST = 0.05  # share of the real pictures that may be called blank
SAME = 8.0  # of 255: pictures that differ by less look the same
_SIDE = 64  # larger pictures are compared at this side


def coarse_pixels(images: Tensor) -> Tensor:
    """The means of uint8 pictures (B, 3, H, W) over a coarse grid, float32 (B, 192) in [-1, 1]."""
    return F.adaptive_avg_pool2d(images.float(), COARSE).flatten(1) / 127.5 - 1


def contrast(images: Tensor) -> Tensor:
    """How much uint8 pictures (B, 3, H, W) vary over a coarse grid: (B,) standard deviations of 0 to 127.5 levels."""
    cells = coarse_pixels(images).unflatten(1, (3, -1)) * 127.5
    return cells.var(-1, correction=0).mean(1).sqrt()


def blank_below(real_contrast: Tensor) -> float:
    """The contrast below which a picture is blank, among pictures like these real ones.

    It is ``FLAT``, or less where many of the real pictures are flat themselves, such as thin lines on white.
    """
    return min(FLAT, real_contrast.quantile(FLATTEST).item())


def small_pictures(images: Tensor) -> Tensor:
    """Uint8 pictures (B, 3, H, W) as rows of float32 pixels, at most 64 pixels a side."""
    height, width = (min(side, _SIDE) for side in images.shape[-2:])
    return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1)


def defects(contrasts: Tensor, pictures: Tensor, blank_limit: float) -> tuple[float, float]:
    """Shares of pictures that are blank, and of others that look the same as one before them.

    Args:
        contrasts: (N,), by :func:`contrast`.
        pictures: (N, P), by :func:`small_pictures`.
        blank_limit: by :func:`blank_below`.
    """
    blank = contrasts < blank_limit
    distances = torch.cdist(pictures, pictures) / pictures.shape[1] ** 0.5
    repeated = (distances < SAME).tril(-1).any(1) & ~blank
    return blank.float().mean().item(), repeated.float().mean().item()
