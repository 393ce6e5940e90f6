"""The real pictures that samples are held against: a data set or an archive, with features that are taken once."""

from __future__ import annotations

from pathlib import Path

import torch

from wvq.data.dataset import ImageDataset
from wvq.errors import DataError
from wvq.eval.features.networks import INCEPTION, FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures, require_kind
from wvq.eval.figures.comparison import against_pool, compare
from wvq.eval.figures.distances import (
    AT_FLOOR_N,
    INCEPTION_SCORE_SPLITS,
    frechet_distance,
    inception_score,
    small_sample_warnings,
)
from wvq.eval.real.archive import ReferenceArchive
from wvq.eval.real.cache import archive_features, real_features

FLOOR_BELOW = 50_000  # samples: with so many the floor is near 0, and the published figures have none


class RealPictures:
    """A reference for generation. Its features are kept, so that several evaluations take them once.

    Args:
        source: a data set, compared under the centre crop; or an archive.
        kind: ``train`` or ``validation``: what the source holds. Samples are held against training pictures.
        force: allow others; the result says so.
        cache: folder of features of real pictures (:mod:`wvq.eval.real.cache`); none are kept on disk if None.
        num_workers: loader processes of each process; :func:`wvq.hardware.loader_processes` says how many if None.

    Attributes:
        dataset: the data set, or None.
        archive: the archive, or None.

    Raises:
        ConfigError: an unknown kind, or validation pictures without ``force``.
    """

    def __init__(
        self,
        source: ImageDataset | ReferenceArchive,
        kind: str = "train",
        force: bool = False,
        cache: str | Path | None = None,
        num_workers: int | None = None,
    ):
        self._forced = require_kind("generation", kind, force)
        self.archive = source if isinstance(source, ReferenceArchive) else None
        self.dataset = None if self.archive else source
        self.kind, self.cache, self.num_workers = kind, cache and Path(cache), num_workers
        self._pools: dict[tuple, PictureFeatures] = {}

    def check(self, network: FeatureNetwork) -> None:
        """
        Raises:
            DataError: fewer than four pictures, or an archive that this network cannot be held against.
        """
        if self.archive:
            check_archive(self.archive, network)
        elif len(self.dataset) < 4:
            raise DataError(f"generation needs at least 4 samples and 4 pictures, not {len(self.dataset)}")

    def order(self) -> list[int]:
        """The order that pictures of a data set are taken in, the same for all evaluations; none of an archive."""
        return [] if self.archive else _shuffled(len(self.dataset)).tolist()

    def pool(
        self, network: FeatureNetwork, num_images: int, batch_size: int = 64, progress: bool = True
    ) -> PictureFeatures:
        """Features of as many pictures as ``num_images`` samples and their floor need; all of an archive's.

        Raises:
            DataError: fewer than four pictures that can be read, or too many that cannot.
        """
        limit = num_images * (2 if num_images < FLOOR_BELOW else 1)
        key = (network.name, network.weights_sha256, limit)
        if key in self._pools:
            return self._pools[key]
        if self.archive:
            pool = archive_features(self.archive, network, self.kind, batch_size, self.cache, progress)
            pool = pool.part(_shuffled(pool.num_images))  # often sorted by class; parts stand for all of it
        else:
            wanted = (batch_size, self.order(), limit)
            pool = real_features(
                self.dataset, network, self.kind, *wanted, self.cache, progress, num_workers=self.num_workers
            )
            if pool.num_images < 4:
                raise DataError(f"generation needs at least 4 pictures that can be read, not {pool.num_images}")
        self._pools[key] = pool
        return pool

    def compare(
        self, network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures
    ) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
        """Metrics, floor and counts of samples against these pictures."""
        if self.archive:
            return against_archive(network, samples, self.archive, pool)
        return against_pool(network, samples, pool)

    def description(self, pool: PictureFeatures, used: int) -> dict:
        """The identity of the reference, for a result's settings."""
        found = self.archive.description() if self.archive else pool.description()
        return found | {"used": used, "kind": self.kind} | self._forced

    def warnings(
        self, network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures, counts: dict[str, int]
    ) -> list[str]:
        """What a reader of the figures must know of the pictures, their numbers and their sizes."""
        used, drawn, floor = counts["num_reference"], samples.num_images, counts["num_floor"]
        found = [*pool.warnings, *network.warnings]
        found += small_sample_warnings(network.dim, samples=drawn, floor=floor or network.dim)
        if not floor:
            found.append(
                f"no floor: {self.archive.file.name} holds statistics and {pool.num_images or 'no'} pictures, so it is "
                f"not known how far from them real pictures are at N = {drawn:,}"
            )
        if used < drawn and not self.archive:
            found.append(f"{drawn} samples are compared with {used} pictures: the data set has no more")
        elif used and used != drawn:
            which = "the metrics" if self.archive.moments is None else "all metrics but fid and sfid"
            found.append(f"{which} compare {drawn} samples with {used} pictures of {self.archive.file.name}")
        if pool.num_images and samples.image_size != pool.image_size:
            found.append(f"image_size: samples have {samples.image_size} px, the real pictures {pool.image_size} px")
        if self._forced:
            found.append("the reference holds validation pictures: not comparable with published figures")
        return found


def _shuffled(count: int) -> torch.Tensor:
    # Not by the samples' seed: results of several seeds compare only over the same pictures.
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def check_archive(archive: ReferenceArchive, network: FeatureNetwork) -> None:
    """Hold an archive against the network before anything is drawn.

    Raises:
        DataError: no or too few pictures, where its statistics cannot serve; or statistics of another network.
    """
    if network.name != INCEPTION or archive.moments is None:
        if archive.pictures is None:
            raise DataError(
                f"reference: {archive.file} holds statistics of Inception features and no pictures, and the feature "
                f"network is {network.name}; give --inception-weights"
            )
        if len(archive.pictures) < 4:
            raise DataError(f"reference: {archive.file} holds {len(archive.pictures)} pictures; at least 4 are needed")
        return
    dims = len(archive.moments.mean)
    if dims != network.dim:
        raise DataError(f"reference: mu of {archive.file} has {dims} dims, Inception's features have {network.dim}")


def against_archive(
    network: FeatureNetwork, samples: PictureFeatures, archive: ReferenceArchive, pool: PictureFeatures
) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Metrics, floor and counts against stored statistics and the pictures beside them.

    ``fid`` and ``sfid`` are distances to the stored moments where there are any, as published; everything else is
    measured against the archive's own pictures. The floor holds those pictures, as many as there are samples, against
    the moments.
    """
    if archive.moments is None or network.name != INCEPTION:
        return against_pool(network, samples, pool)
    counts = {"num_images": samples.num_images, "num_reference": pool.num_images, "num_floor": 0}
    metrics = compare(network, samples, pool) if pool.num_images >= 4 else {}
    if not metrics and samples.num_images >= INCEPTION_SCORE_SPLITS:
        metrics["inception_score"] = inception_score(samples.logits)
    metrics |= _to_moments(samples, archive)
    floor = {}
    num_floor = min(pool.num_images, samples.num_images)
    if num_floor >= 4:
        floor = _to_moments(pool.part(slice(num_floor)), archive)
        counts["num_floor"] = num_floor
        if num_floor < samples.num_images:
            at_floor_n = _to_moments(samples.part(slice(num_floor)), archive)
            metrics |= {key + AT_FLOOR_N: value for key, value in at_floor_n.items()}
    return metrics, floor, counts


def _to_moments(pictures: PictureFeatures, archive: ReferenceArchive) -> dict[str, float]:
    found = {"fid": frechet_distance(pictures.features, archive.moments)}
    if archive.spatial is not None and pictures.spatial is not None:
        found["sfid"] = frechet_distance(pictures.spatial, archive.spatial)
    return found
