"""Draws the samples of an evaluation by their numbers, brings them to another size, and keeps them as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from wvq.data.pixels import save_png, to_uint8, uint8_to_pil
from wvq.distributed import decided_by_first_process
from wvq.eval.features.clip_score import CLIPScore
from wvq.eval.features.shards import Batch
from wvq.eval.samples.conditions import Conditions, conditions_hash
from wvq.files.stage_folder import refuse_occupied
from wvq.generator.base.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline


@dataclass
class Samples:
    """The numbered samples of an evaluation: sample i is drawn from seed + i under the i-th condition.

    Attributes:
        pipeline: draws them.
        num_images: how many there are.
        conditions: conditions of each.
        sampling: how codes are drawn.
        seed: seed of the first sample.
        batch_size: samples at once; they depend on it by rounding alone.
        resize: side in pixels that they are brought to before they are measured; as drawn if None.
        clip: also scores them against their texts; None for no scores.
    """

    pipeline: ImageGenerationPipeline
    num_images: int
    conditions: Conditions
    sampling: SamplingSettings
    seed: int = 0
    batch_size: int = 64
    resize: int | None = None
    clip: CLIPScore | None = None

    def draw(self, run: range) -> Batch:
        """The samples of consecutive numbers, uint8 (B, 3, H, W), with their scores."""
        output = self.pipeline(
            **self.conditions.part(run),
            num_images=len(run),
            seed=self.seed + run.start,
            batch_size=self.batch_size,
            output_type="pt",
            **asdict(self.sampling),
        )
        images = to_uint8(resized(output.images, self.resize))
        if self.clip is None:
            return Batch(images, list(run))
        texts = self.conditions.texts or []
        return Batch(images, list(run), scores={"clip": self.clip(images, texts[run.start : run.stop])})

    @cached_property
    def former_identity(self) -> dict[str, Any]:
        """What earlier versions wrote instead of some values of the identity."""
        conditions = conditions_hash(self.conditions.labels, self.conditions.texts)
        return {"pipeline_weights": self.pipeline.former_hashes(), "conditions": conditions}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the pictures and their scores depend on."""
        return {
            "pipeline_weights": self.pipeline.weights_hashes(self.former_identity["pipeline_weights"]),
            "num_images": self.num_images,
            "seed": self.seed,
            "conditions": conditions_hash(self.conditions.ids, self.conditions.texts),
            "sampling": self.sampling.identity(),
            "resize": self.resize,
            **self.pipeline.numerics(),
            **({} if self.clip is None else self.clip.description()),
        }

    def settings(self) -> dict[str, Any]:
        """How the samples were drawn, for a result."""
        return {
            **asdict(self.sampling),
            "guidance_formula": "u + s (c - u)",
            "resize": self.resize,
            "resize_filter": self.resize and "bicubic without antialiasing, before rounding",
            "seed": self.seed,
            "batch_size": self.batch_size,
            "classes": self.conditions.class_setting,
            "pipeline_weights": self.identity["pipeline_weights"],
            **self.pipeline.numerics(),
        }


def resized(images: Tensor, side: int | None) -> Tensor:
    """Float pictures (B, 3, S, S) at another side: bicubic without antialiasing, as LlamaGen brings 384 px to 256."""
    if side is None or images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=False)


class Saving:
    """How samples are kept: not at all, one PNG each as they are drawn, or in an archive at the end.

    Args:
        target: a folder, or a file that ends in ``.npz``; None to keep none.
        seed: seed of the first sample, by which the pictures are named.
        new: whether no earlier run has begun to fill the target.

    Attributes:
        archive: whether the stream must keep the pixels, for an archive.

    Raises:
        ConfigError: the target of a new run is there already.
    """

    def __init__(self, target: str | Path | None, seed: int, new: bool):
        self.seed = seed
        self.archive = target is not None and Path(target).suffix == ".npz"
        self.folder = None if target is None or self.archive else Path(target)
        if target is not None and new:
            decided_by_first_process(lambda: refuse_occupied(target, "pictures"))

    def around(self, draw: Callable[[range], Batch]) -> Callable[[range], Batch]:
        """``draw`` that also writes each sample to ``<seed>.png``, complete or absent."""
        folder = self.folder
        if folder is None:
            return draw
        folder.mkdir(parents=True, exist_ok=True)

        def draw_and_save(run: range) -> Batch:
            batch = draw(run)
            for number, picture in zip(batch.numbers, uint8_to_pil(batch.images), strict=True):
                save_png(picture, folder / f"{self.seed + number:06d}.png")
            return batch

        return draw_and_save
