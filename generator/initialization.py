"""How wide a layer's weights start where it differs from the others; the layer carries it until it is initialised."""

from __future__ import annotations

from torch import nn


def set_init_scale(layer: nn.Module, scale: float) -> None:
    """Let a layer's weights start at so many times the standard deviation of the others'."""
    layer.init_scale = scale  # type: ignore[assignment]  # the stub lets modules have tensors and modules alone


def init_scale(layer: nn.Module) -> float:
    """What :func:`set_init_scale` has set; 1 where it has not."""
    return getattr(layer, "init_scale", 1.0)
