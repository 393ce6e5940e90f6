"""Draws samples batch by batch, brings them to another size, and keeps them as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from wvq.data.pixels import save_png, to_uint8, uint8_to_pil
from wvq.distributed import decided_by_first_process
from wvq.errors import ConfigError
from wvq.eval.features.shards import Batch
from wvq.files.stage_folder import refuse_occupied

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline

MOST_PIXELS = 4_096  # a side that samples may be brought to


def sample_pictures(
    pipeline: ImageGenerationPipeline,
    num_images: int,
    class_labels: Sequence[str | int] | None = None,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    **sampling,
) -> Iterator[Tensor]:
    """Draws samples batch by batch: sample i comes from seed + i whatever the batch size, so memory stays bounded.

    Args:
        pipeline: the pipeline to draw from.
        num_images: number of samples.
        class_labels: one class a sample, or None.
        prompts: one text a sample, or None.
        seed: seed of the first sample.
        batch_size: samples in a batch.
        sampling: settings for the pipeline, such as ``guidance_scale``.

    Yields:
        uint8 pictures (B, 3, S, S).
    """
    for start in range(0, num_images, batch_size):
        run = range(start, min(start + batch_size, num_images))
        yield draw_samples(pipeline, run, class_labels, prompts, seed, batch_size, sampling)


def draw_samples(
    pipeline: ImageGenerationPipeline,
    run: range,
    class_labels: Sequence[str | int] | None,
    prompts: Sequence[str] | None,
    seed: int,
    batch_size: int,
    sampling: dict,
    resize: int | None = None,
) -> Tensor:
    """The samples of consecutive numbers, uint8 (B, 3, S, S); arguments as in :func:`sample_pictures`."""
    conditions = {}
    if class_labels is not None:
        conditions["class_labels"] = list(class_labels[run.start : run.stop])
    if prompts is not None:
        conditions["prompt"] = list(prompts[run.start : run.stop])
    output = pipeline(
        **conditions,
        num_images=len(run),
        seed=seed + run.start,
        batch_size=batch_size,
        output_type="pt",
        **sampling,
    )
    return to_uint8(resized(output.images, resize))


def check_resize(side: int | None) -> None:
    """
    Raises:
        ConfigError: no side of pictures.
    """
    if side is not None and not 1 <= side <= MOST_PIXELS:
        raise ConfigError(f"resize must be from 1 to {MOST_PIXELS:,} pixels, got {side}")


def resized(images: Tensor, side: int | None) -> Tensor:
    """Float pictures (B, 3, S, S) at another side: bicubic without antialiasing, as LlamaGen brings 384 px to 256."""
    if side is None or images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=False)


class Saving:
    """How samples are kept: not at all, one PNG each as they are drawn, or in an archive at the end.

    Attributes:
        archive: whether the stream must hold on to the pixels, for an archive.
    """

    def __init__(self, target: str | Path | None, seed: int, new: bool):
        self.seed = seed
        self.archive = target is not None and Path(target).suffix == ".npz"
        self.folder = None if target is None or self.archive else Path(target)
        if target is not None and new:
            decided_by_first_process(lambda: refuse_occupied(target, "pictures"))

    def around(self, draw: Callable[[range], Batch]) -> Callable[[range], Batch]:
        """``draw`` that also writes each sample to ``<seed>.png``, whole or not at all."""
        if self.folder is None:
            return draw
        self.folder.mkdir(parents=True, exist_ok=True)

        def draw_and_save(run: range) -> Batch:
            batch = draw(run)
            for number, picture in zip(batch.numbers, uint8_to_pil(batch.images), strict=True):
                save_png(picture, self.folder / f"{self.seed + number:06d}.png")
            return batch

        return draw_and_save
