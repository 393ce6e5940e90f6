"""The real pictures that samples are compared with: those of a data set, or those of an archive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import torch

from wvq.data.dataset import ImageDataset
from wvq.errors import DataError
from wvq.eval.features.names import INCEPTION
from wvq.eval.features.networks import FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures, PictureIdentity
from wvq.eval.features.shards import Batch
from wvq.eval.figures.comparison import Comparison, at_floor_n, compare_with_pool
from wvq.eval.figures.distances import frechet_distance, small_sample_warnings
from wvq.eval.figures.metrics import FRECHET, SPATIAL, compare
from wvq.eval.real.archive import ReferenceArchive
from wvq.eval.real.cache import kept_features
from wvq.eval.real.dataset import dataset_features
from wvq.eval.real.kinds import FEWEST, require_kind
from wvq.settings.size import size_of, size_text

FLOOR_BELOW = 50_000  # samples: with so many the floor is near 0, and the published figures have none


def pool_size(num_images: int) -> int:
    """The most real pictures that ``num_images`` samples and their floor need."""
    return num_images * (2 if num_images < FLOOR_BELOW else 1)


class Reference(ABC):
    """Real pictures that samples are compared with. Their features are kept, so that several evaluations share them.

    Args:
        kind: ``train`` or ``validation``: what the pictures are. Samples are compared with training pictures.
        force: allow others; the result records that.
        cache: folder of features of real pictures (:mod:`wvq.eval.real.cache`); none are kept on disk if None.

    Attributes:
        dataset: the data set that the pictures are from, for their classes and captions; None if there is none.

    Raises:
        ConfigError: an unknown kind, or validation pictures without ``force``.
    """

    dataset: ImageDataset | None = None

    def __init__(self, kind: str = "train", force: bool = False, cache: str | Path | None = None):
        self._forced = require_kind("generation", kind, force)
        self.kind, self.cache = kind, cache
        self._pools: dict[tuple[str, str, int], PictureFeatures] = {}

    @abstractmethod
    def check(self, network: FeatureNetwork) -> None:
        """Refuse pictures that samples cannot be compared with, before anything is drawn.

        Raises:
            DataError: fewer than four pictures, or statistics of another network.
        """

    @abstractmethod
    def order(self) -> list[int]:
        """Indices into the data set in the order that pictures are taken, the same for all evaluations."""

    @abstractmethod
    def compare(self, network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures) -> Comparison:
        """Metrics, floor and counts of samples against these pictures."""

    @abstractmethod
    def _features(self, network: FeatureNetwork, limit: int, batch_size: int, progress: bool) -> PictureFeatures:
        """Features of up to ``limit`` pictures, in a random order."""

    @abstractmethod
    def _identity(self, pool: PictureFeatures) -> dict[str, object]:
        """Identity of the reference, for a result's settings."""

    @abstractmethod
    def _count_warnings(self, comparison: Comparison, pool: PictureFeatures) -> list[str]:
        """Warnings about the numbers of pictures."""

    def pool(
        self, network: FeatureNetwork, num_images: int, batch_size: int = 64, progress: bool = True
    ) -> PictureFeatures:
        """Features of as many pictures as ``num_images`` samples and their floor need; all of an archive's.

        Raises:
            DataError: fewer than four pictures that can be read, or too many that cannot.
        """
        limit = pool_size(num_images)
        key = (network.name, network.weights_sha256, limit)
        if key not in self._pools:
            self._pools[key] = self._features(network, limit, batch_size, progress)
        return self._pools[key]

    def description(self, pool: PictureFeatures, used: int) -> dict[str, object]:
        """The identity of the reference, for a result's settings; ``used`` is how many pictures were compared with."""
        return {**self._identity(pool), "used": used, "kind": self.kind, **self._forced}

    def warnings(
        self, network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures, comparison: Comparison
    ) -> list[str]:
        """Warnings for a reader of the figures, about the pictures, their numbers and their sizes."""
        small = small_sample_warnings(
            network.dim, samples=samples.num_images, floor=comparison.num_floor or network.dim
        )
        lines = [*pool.warnings, *network.warnings, *small, *self._count_warnings(comparison, pool)]
        if pool.num_images and samples.image_size != pool.image_size:
            sizes = size_text(samples.image_size), size_text(pool.image_size)
            lines.append(f"image_size: samples have {sizes[0]} px, the real pictures {sizes[1]} px")
        if self._forced:
            lines.append("the reference holds validation pictures: not comparable with published figures")
        return lines


class DatasetReference(Reference):
    """The pictures of a data set, compared under the centre crop or pad.

    Args:
        dataset: the pictures.
        kind, force, cache: as in :class:`Reference`.
        num_workers: loader processes of each process; :func:`wvq.hardware.loader_processes` decides if None.
    """

    dataset: ImageDataset

    def __init__(
        self,
        dataset: ImageDataset,
        kind: str = "train",
        force: bool = False,
        cache: str | Path | None = None,
        num_workers: int | None = None,
    ):
        super().__init__(kind, force, cache)
        self.dataset, self.num_workers = dataset, num_workers

    def check(self, network: FeatureNetwork) -> None:
        if len(self.dataset) < FEWEST:
            raise DataError(
                f"generation needs at least {FEWEST} samples and {FEWEST} pictures, not {len(self.dataset)}"
            )

    def order(self) -> list[int]:
        return _shuffled(len(self.dataset)).tolist()

    def _features(self, network: FeatureNetwork, limit: int, batch_size: int, progress: bool) -> PictureFeatures:
        pool = dataset_features(
            self.dataset,
            network,
            self.kind,
            batch_size,
            indices=self.order(),
            limit=limit,
            cache=self.cache,
            progress=progress,
            num_workers=self.num_workers,
        )
        if pool.num_images < FEWEST:
            raise DataError(f"generation needs at least {FEWEST} pictures that can be read, not {pool.num_images}")
        return pool

    def compare(self, network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures) -> Comparison:
        return compare_with_pool(network, samples, pool)

    def _identity(self, pool: PictureFeatures) -> dict[str, object]:
        return {**pool.description()}

    def _count_warnings(self, comparison: Comparison, pool: PictureFeatures) -> list[str]:
        drawn, used = comparison.num_images, comparison.num_reference
        return [f"{drawn} samples are compared with {used} pictures: the data set has no more"] if used < drawn else []


class ArchiveReference(Reference):
    """The statistics and the pictures of a file in the form of ADM's evaluation, where it holds them.

    Args:
        archive: the file.
        kind, force, cache: as in :class:`Reference`.
    """

    def __init__(
        self,
        archive: ReferenceArchive,
        kind: str = "train",
        force: bool = False,
        cache: str | Path | None = None,
    ):
        super().__init__(kind, force, cache)
        self.archive = archive

    def check(self, network: FeatureNetwork) -> None:
        archive, moments = self.archive, self.archive.moments
        if moments is not None and network.name == INCEPTION:
            dims = len(moments.mean)
            if dims != network.dim:
                raise DataError(
                    f"reference: mu of {archive.file} has {dims} dims, Inception's features have {network.dim}"
                )
        elif archive.pictures is None:
            raise DataError(
                f"reference: {archive.file} holds statistics of Inception features and no pictures, and the feature "
                f"network is {network.name}; give --inception-weights"
            )
        elif len(archive.pictures) < FEWEST:
            raise DataError(
                f"reference: {archive.file} holds {len(archive.pictures)} pictures; at least {FEWEST} are needed"
            )

    def order(self) -> list[int]:
        return []

    def _features(self, network: FeatureNetwork, limit: int, batch_size: int, progress: bool) -> PictureFeatures:
        archive, pictures = self.archive, self.archive.pictures
        if pictures is None:
            return PictureFeatures(torch.empty(0, network.dim), None, archive.sha256, 0, "none")
        described = PictureIdentity(
            sha256=archive.sha256, num_images=len(pictures), image_size=size_of(pictures.shape), crop="as in the file"
        )

        def draw(run: range) -> Batch:
            return Batch(pictures[run.start : run.stop], list(run))

        pool = kept_features(draw, described, network, self.kind, self.cache, batch_size, progress)
        # Shuffled: archives are often sorted by class, and a part must represent the whole.
        return replace(pool.part(_shuffled(pool.num_images)), indices=[])

    def compare(self, network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures) -> Comparison:
        """Metrics, floor and counts against stored statistics and the pictures beside them.

        ``fid`` and ``sfid`` are distances to the stored moments where there are any, as published; everything else is
        measured against the archive's own pictures. The floor compares those pictures, as many as there are samples,
        with the moments.
        """
        if self.archive.moments is None or network.name != INCEPTION:
            return compare_with_pool(network, samples, pool)
        real = pool if pool.num_images >= FEWEST else pool.part(slice(0))
        metrics = compare(network, samples, real) | self._to_moments(samples)
        num_floor = min(real.num_images, samples.num_images)
        floor = self._to_moments(real.part(slice(num_floor))) if num_floor else {}
        if 0 < num_floor < samples.num_images:
            metrics |= at_floor_n(self._to_moments(samples.part(slice(num_floor))))
        return Comparison(metrics, floor, samples.num_images, pool.num_images, num_floor)

    def _to_moments(self, pictures: PictureFeatures) -> dict[str, float]:
        """Distances of pictures from the stored moments, under the published names."""
        figures = {}
        for metric, stored in ((FRECHET, self.archive.moments), (SPATIAL, self.archive.spatial)):
            features = metric.features(pictures)
            if stored is not None and features is not None:
                figures[metric.names[0]] = frechet_distance(features, stored)
        return figures

    def _identity(self, pool: PictureFeatures) -> dict[str, object]:
        return self.archive.description()

    def _count_warnings(self, comparison: Comparison, pool: PictureFeatures) -> list[str]:
        drawn, used, name = comparison.num_images, comparison.num_reference, self.archive.file.name
        lines = []
        if not comparison.num_floor:
            lines.append(
                f"no floor: {name} holds statistics and {pool.num_images or 'no'} pictures, so it is not known how far "
                f"from them real pictures are at N = {drawn:,}"
            )
        if used and used != drawn:
            which = "the metrics" if self.archive.moments is None else "all metrics but fid and sfid"
            lines.append(f"{which} compare {drawn} samples with {used} pictures of {name}")
        return lines


def as_reference(source: Reference | ReferenceArchive | ImageDataset) -> Reference:
    """A reference of training pictures over a data set or an archive; another reference unchanged."""
    if isinstance(source, Reference):
        return source
    return ArchiveReference(source) if isinstance(source, ReferenceArchive) else DatasetReference(source)


def _shuffled(count: int) -> torch.Tensor:
    # Not by the samples' seed: results of several seeds compare only over the same pictures.
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
