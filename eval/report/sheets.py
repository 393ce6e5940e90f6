"""Sheets of pictures for reports: samples by class, and samples beside the real pictures that resemble them most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from wvq.data.pixels import to_pil
from wvq.data.sheets import labelled_rows
from wvq.generator.base.conditioning import class_list

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline

ROWS = 4  # of samples without classes


def enlargement(side: int, smallest: int = 64) -> int:
    """Whole-number enlargement of pictures by their longer side in pixels, so that small ones can be seen."""
    return max(1, smallest // side)


def sample_sheet(
    pipeline: ImageGenerationPipeline, num_classes: int, columns: int, seed: int, **sampling: Any
) -> tuple[Tensor, Tensor, Image.Image]:
    """The first samples of each class, one row each with id and name; without classes, rows of the first samples.

    Args:
        pipeline: draws them.
        num_classes: how many classes, from the first; 0 for samples without a class.
        columns: samples in a row.
        seed: seed of the first sample of each class.
        sampling: fields of SamplingSettings; the pipeline's own where None or left out.

    Returns:
        Pictures (N, 3, H, W) in [-1, 1], their codes, and the sheet.
    """
    calls: list[dict[str, Any]] = [{"class_labels": number, "seed": seed} for number in range(num_classes)]
    # Without classes one call after the other, each with the next seeds.
    calls = calls or [{"seed": seed + columns * row} for row in range(ROWS)]
    drawn = [pipeline(**call, num_images=columns, output_type="pt", **sampling) for call in calls]
    named = class_list(pipeline.class_names[:num_classes])
    labels = (named or [str(number) for number in range(num_classes)]) or [""] * len(drawn)
    rows = [(label, to_pil(output.images)) for label, output in zip(labels, drawn, strict=True)]
    images, codes = (torch.cat(parts) for parts in zip(*((o.images, o.codes) for o in drawn), strict=True))
    scale = enlargement(max(images.shape[-2:]))
    return images, codes, labelled_rows(rows, scale, label_width=110 if num_classes else 0)


def neighbour_sheets(samples: Tensor, nearest: Sequence[Tensor]) -> list[tuple[Image.Image, str]]:
    """Two sheets, with captions: in each row a sample, then the pictures that are nearest to it.

    Args:
        samples: (N, 3, H, W) in [-1, 1].
        nearest: for each sample the pictures (K, 3, H', W') in [-1, 1], nearest first.
    """
    rows = [("", [*to_pil(one[None]), *to_pil(others)]) for one, others in zip(samples, nearest, strict=True)]
    middle = -(-len(rows) // 2)
    halves = [part for part in (rows[:middle], rows[middle:]) if part]
    scale = enlargement(max(samples.shape[-2:]))
    return [(labelled_rows(half, scale, label_width=8), "sample, then its nearest real pictures") for half in halves]
