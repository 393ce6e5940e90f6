"""Samples against real pictures at their own N, and real pictures against real pictures: the floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wvq.eval.features.networks import FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures
from wvq.eval.figures.metrics import compare

# Ending of a metric's name where it was measured at the floor's N in place of all pictures.
AT_FLOOR_N = "_at_floor_n"


@dataclass
class Comparison:
    """Figures of an evaluation, and the numbers of pictures that they stand for.

    Attributes:
        metrics: samples against real pictures; figures that end in ``_at_floor_n`` were taken at the floor's N.
        floor: the same with real pictures instead of samples; empty where there are none.
        num_images: samples.
        num_reference: real pictures.
        num_floor: pictures on each side of the floor.
    """

    metrics: dict[str, float]
    floor: dict[str, float]
    num_images: int
    num_reference: int
    num_floor: int

    @property
    def counts(self) -> dict[str, int]:
        """The numbers, by the names of a result's fields."""
        return {"num_images": self.num_images, "num_reference": self.num_reference, "num_floor": self.num_floor}


def floor_beside(result: Mapping[str, Any], name: str) -> float | None:
    """The floor that a metric compares with: the one at the same N, since two Ns do not compare; None if there is none.

    Args:
        result: with ``floor`` and the numbers of :attr:`Comparison.counts`, as a result file has them.
        name: name of the metric.
    """
    plain = name.removesuffix(AT_FLOOR_N)
    same = plain != name or result.get("num_floor") == result.get("num_images")
    return result.get("floor", {}).get(plain) if same else None


def at_floor_n(figures: dict[str, float]) -> dict[str, float]:
    """Figures under the names of those that were taken at the floor's N."""
    return {name + AT_FLOOR_N: value for name, value in figures.items()}


def compare_with_pool(network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures) -> Comparison:
    """Compare samples with the start of a pool of real pictures, and the end of the pool with its start.

    Args:
        network: gave all features.
        samples: N of them.
        pool: real pictures in a random order, up to 2 N.
    """
    num_reference = min(samples.num_images, pool.num_images)
    num_floor = min(samples.num_images, pool.num_images // 2)
    metrics = compare(network, samples, pool.part(slice(num_reference)))
    first, other = pool.part(slice(num_floor)), pool.part(slice(pool.num_images - num_floor, None))
    floor = compare(network, other, first)  # the other half in the samples' place
    if num_floor < num_reference:
        metrics |= at_floor_n(compare(network, samples.part(slice(num_floor)), first))
    return Comparison(metrics, floor, samples.num_images, num_reference, num_floor)
