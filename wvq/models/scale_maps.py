"""Maps of rising size and how code vectors of one become features of the grid: for the quantizer and the generator.

Shapes: B pictures, D dims, h w grid, r c map of a scale.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from wvq.checks import Rule, integer, list_of

Shape = tuple[int, int]
# What the sides of the maps must be.
SCALES = list_of(integer(), "a rising list of integers of at least 1")
RISING = Rule(SCALES.expected, lambda scales: all(coarse < fine for coarse, fine in pairwise(scales)))
CONV_TABLES = ("var", "even")


def average_to(maps: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Maps (B, D, h, w) averaged over areas down to (B, D, r, c); unchanged at their own size."""
    return maps if tuple(maps.shape[2:]) == shape else F.interpolate(maps, size=shape, mode="area")


def spread(
    maps: torch.Tensor, grid: Shape, weight: torch.Tensor | None, bias: torch.Tensor | None, ratio: float
) -> torch.Tensor:
    """Contribution (B, D, h, w) of a scale's code vectors to the features of the grid.

    Args:
        maps: (B, D, r, c) code vectors of the scale, brought up bicubically.
        grid: h and w.
        weight, bias: of the 3 x 3 convolution of the scale; none if None.
        ratio: share of the convolution's output; its input is the rest.
    """
    if tuple(maps.shape[2:]) != grid:
        maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
    if weight is None:
        return maps
    return (1 - ratio) * maps + ratio * F.conv2d(maps, weight, bias, padding=1)


def shared_convs(num_scales: int, num_convs: int, table: str = "var") -> list[int]:
    """Which convolution each scale takes, so that neighbouring scales share one: that whose place is the closest.

    Scales lie evenly on [0, 1], the first at 0 and the last at 1.

    Args:
        num_scales: scales S.
        num_convs: convolutions M.
        table: ``var``: places from 1 / (3 M) to 1 - 1 / (3 M) for four convolutions, from 1 / (2 M) to 1 - 1 / (2 M)
            for another number, evenly, as VAR's code has them (Tian et al. 2024). Not all are taken where there are
            more convolutions than scales. ``even``: the middles of as many equal parts, of at most one convolution a
            scale, the finer of two that are as close.

    Returns:
        one index a scale; none if there are no convolutions.
    """
    if num_convs == 0:
        return []
    last = max(num_scales - 1, 1)
    if table == "even":
        num_convs = min(num_convs, num_scales)
        return [min(index * num_convs // last, num_convs - 1) for index in range(num_scales)]
    edge = 1 / 3 / num_convs if num_convs == 4 else 1 / 2 / num_convs
    # In numpy's float64, whose rounding decides between two that are as close.
    places = np.linspace(edge, 1 - edge, num_convs)
    return [int(np.abs(places - index / last).argmin()) for index in range(num_scales)]
