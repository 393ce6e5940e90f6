"""The scale at which a layer's weights start, where it differs from the others; kept on the layer."""

from __future__ import annotations

from torch import nn


def set_init_scale(layer: nn.Module, scale: float) -> None:
    """Let a layer's weights start at ``scale`` times the standard deviation of the others'."""
    layer.init_scale = scale  # type: ignore[assignment]  # the stub lets modules have tensors and modules alone


def init_scale(layer: nn.Module) -> float:
    """The scale that :func:`set_init_scale` has set; 1 if it has set none."""
    return getattr(layer, "init_scale", 1.0)
