"""Features of sets of pictures, real or drawn, with what is needed to tell whether two sets are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from wvq.data.dataset import ImageDataset
from wvq.data.pixels import to_uint8
from wvq.data.unreadable import Reading
from wvq.errors import ConfigError, DataError
from wvq.eval.features.networks import FeatureNetwork
from wvq.hardware import loader_processes


@dataclass
class PictureFeatures:
    """Features of N pictures in one order.

    Attributes:
        features: (N, D) float32 on the CPU.
        logits: (N, classes) float32 on the CPU, or None if the network has none.
        spatial: (N, D') float32 on the CPU, features that keep the place, or None if the network has none.
        sha256: hash over the hashes of the pictures' uint8 pixels, in order.
        image_size: side of the pictures in pixels.
        crop_recipe: how they were cut out of the originals; ``none`` for drawn pictures.
        indices: which pictures of the data set these are, in order; empty for drawn pictures.
        num_unreadable: pictures of the data set that were looked at and left out, because they cannot be read.
        warnings: what to say of those.
    """

    features: Tensor
    logits: Tensor | None
    sha256: str
    image_size: int
    crop_recipe: str
    indices: list[int] = field(default_factory=list)
    num_unreadable: int = 0
    warnings: list[str] = field(default_factory=list)
    spatial: Tensor | None = None

    def part(self, rows: slice | Tensor) -> PictureFeatures:
        """Some of the pictures; the hash stays that of the whole set."""
        parts = {name: getattr(self, name) for name in ("features", "logits", "spatial")}
        return replace(self, **{name: None if value is None else value[rows] for name, value in parts.items()})

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.features)

    def description(self) -> dict[str, int | str]:
        """The identity of the set, for a result's settings."""
        return {
            "sha256": self.sha256,
            "num_images": self.num_images,
            "image_size": self.image_size,
            "crop": self.crop_recipe,
        }


KINDS = {"generation": "train", "reconstruction": "validation"}  # what each task is held against


def require_kind(task: str, kind: str, force: bool) -> dict[str, bool]:
    """Hold a reference's kind against the task's; a field for the result, where another is forced.

    Raises:
        ConfigError: an unknown kind, or the other one without ``force``.
    """
    if kind not in KINDS.values():
        raise ConfigError(f"reference_kind must be train or validation, not {kind!r}")
    if kind == KINDS[task]:
        return {}
    if not force:
        why = (
            "samples are held against the training pictures, whose distribution was learned"
            if task == "generation"
            else "a tokenizer is measured on pictures that it has not been trained on"
        )
        raise ConfigError(
            f"{task} takes a {KINDS[task]} reference, and this one is {kind}: {why}, and published figures are made "
            "so; --force-reference goes on all the same and marks the result"
        )
    return {"forced": True}


def picture_digests(images: Tensor) -> list[bytes]:
    """SHA-256 of each picture's pixels, of uint8 (B, 3, S, S)."""
    return [hashlib.sha256(picture.tobytes()).digest() for picture in images.cpu().contiguous().numpy()]


def evaluation_view(dataset: ImageDataset) -> ImageDataset:
    """The data set under the one crop that evaluations use: centre, no flip."""
    return dataset if dataset.crop_recipe == "center" else dataset.with_crop(crop="center", flip=False)


def pixel_batches(reading: Reading, batch_size: int) -> Iterator[Tensor]:
    """Batches of pixels (B, 3, S, S) in [-1, 1], on the CPU.

    Raises:
        DataError: at the end, if too many pictures were unreadable.
    """
    for batch in reading.batches(batch_size):
        yield batch["pixel_values"]
    reading.refuse_too_many()


def collect_features(
    batches: Iterable[Tensor], network: FeatureNetwork, num_images: int, crop_recipe: str, progress: str | None = None
) -> PictureFeatures:
    """Features of a stream of pictures.

    Args:
        batches: uint8 pictures (B, 3, S, S).
        network: the feature network.
        num_images: number of pictures to come, for the progress bar.
        crop_recipe: how the pictures were cut out of their originals.
        progress: what the progress bar says; none if not given.

    Raises:
        DataError: the stream is empty.
    """
    digest, parts, image_size = hashlib.sha256(), [], 0
    with tqdm(total=num_images, desc=progress, unit="img", disable=progress is None) as bar:
        for images in batches:
            digest.update(b"".join(picture_digests(images)))
            parts.append([None if value is None else value.cpu() for value in network(images)])
            image_size = images.shape[-1]
            bar.update(len(images))
    if not parts:
        raise DataError("there are no pictures to compute features of")
    features, logits, spatial = (
        None if values[0] is None else torch.cat(values) for values in zip(*parts, strict=True)
    )
    return PictureFeatures(features, logits, digest.hexdigest(), image_size, crop_recipe, spatial=spatial)


def reference_features(
    dataset: ImageDataset,
    network: FeatureNetwork,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
    progress: str | None = "reference features",
    limit: int | None = None,
    num_workers: int | None = None,
) -> PictureFeatures:
    """Features of real pictures under the evaluation crop, without those that cannot be read.

    Args:
        dataset: the pictures.
        network: the feature network.
        batch_size: pictures in a batch.
        indices: which pictures, in this order; all if not given.
        progress: what the progress bar says; none if None.
        limit: the most pictures to take; all if not given.
        num_workers: loader processes; :func:`wvq.hardware.loader_processes` says how many if None.

    Raises:
        DataError: no pictures, or too many that cannot be read.
    """
    view = evaluation_view(dataset)
    reading = Reading(view, indices, limit, loader_processes(network.device.type, num_workers))
    batches = (to_uint8(pixels) for pixels in pixel_batches(reading, batch_size))
    found = collect_features(batches, network, len(reading), view.crop_recipe, progress)
    return replace(
        found, indices=reading.used, num_unreadable=len(reading.left_out), warnings=reading.warnings("evaluation")
    )
