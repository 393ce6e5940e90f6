"""Classifier-free guidance: the scale at each position, and the guided logits.

The scale s is that of u + s (c - u), c and u the logits with and without the condition: 1 is off. Papers that write
c + w (c - u) have w = s - 1. References: Ho & Salimans 2022 (guidance); Chang et al. 2023 (a scale that rises
linearly); Yu et al. 2024, arXiv 2411.00776 (cosine and power-cosine); Kynkäänniemi et al. 2024 (an interval). Imports
nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the settings import this module
    import torch

    from wvq.generator.base.sampling_settings import SamplingSettings

# Rise from 0 to 1 over the share x of the picture that is drawn, with a power.
_RISES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda x, power: 1.0,
    "linear": lambda x, power: x,
    "cosine": lambda x, power: (1 - math.cos(math.pi * x)) / 2,
    "power_cosine": lambda x, power: (1 - math.cos(math.pi * x**power)) / 2,
}
SCHEDULES = tuple(_RISES)


def guidance_scales(
    scale: float, schedule: str, power: float, interval: tuple[float, float], length: int
) -> list[float]:
    """Scale at each of ``length`` positions, of which position t is at the share x = t / length of the picture.

    Args:
        scale: ``constant`` has it everywhere; the others rise to it, from 1.
        schedule: ``linear``: 1 + (scale - 1) x; ``cosine``: 1 + (scale - 1) (1 - cos(pi x)) / 2; ``power_cosine``: the
            same with x ** power in place of x, which keeps the start freer the larger the power is.
        power: exponent of ``power_cosine``.
        interval: shares between which guidance is on, the end left out; outside of it the scale is 1.
        length: number of positions.
    """
    shares = [position / length for position in range(length)]
    start, end = interval
    return [1 + (scale - 1) * _RISES[schedule](x, power) if start <= x < end else 1.0 for x in shares]


def scale_guidance(settings: SamplingSettings, num_scales: int) -> list[float]:
    """Guidance scale at each of ``num_scales`` passes; a rise reaches its end at the last one, as in VAR.

    An interval counts passes: pass i is on where its share i / ``num_scales`` lies inside.
    """
    start, end = settings.guidance_interval
    rise, scale = _RISES[settings.guidance_schedule], settings.guidance_scale
    last = max(num_scales - 1, 1)
    return [
        1 + (scale - 1) * rise(index / last, settings.guidance_power) if start <= index / num_scales < end else 1.0
        for index in range(num_scales)
    ]


def guide(logits: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Guided logits (B, ..., K) of a batch (2 B, ..., K): its first half has the condition, its second has not.

    A tensor of scales is broadcast over the logits.
    """
    conditional, unconditional = logits.chunk(2)
    return unconditional.lerp(conditional, scale)
