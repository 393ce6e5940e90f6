"""What the weights of a published model do not say of it by their names and shapes."""

from __future__ import annotations

from dataclasses import dataclass

from wvq.checks import Checker, integer, or_null


@dataclass(frozen=True)
class PublishedOptions:
    """What is given for a model of another project beside its weights; None where its published sizes are meant.

    Args:
        image_size: side of the pictures in pixels.
        num_heads: attention heads of each layer of a generator.
        scales: sides of the maps of multi-scale codes, the coarsest first.
    """

    image_size: int | None = None
    num_heads: int | None = None
    scales: list[int] | None = None

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        from wvq.models.scale_maps import RISING, SCALES  # it brings torch

        check = Checker(self)
        check.each(or_null(integer()), "image_size", "num_heads")
        check.each(or_null(SCALES), "scales")
        check.each(or_null(RISING), "scales")
