"""All figures that compare one set of pictures with another, under the names of the network that saw them."""

from __future__ import annotations

from wvq.errors import DataError
from wvq.eval.features.networks import INCEPTION, FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures
from wvq.eval.figures.manifold import DENSITY_NEIGHBOURS, manifold_metrics
from wvq.eval.figures.metrics import (
    AT_FLOOR_N,
    INCEPTION_SCORE_SPLITS,
    distribution_metrics,
    frechet_distance,
    inception_score,
)
from wvq.eval.real.archive import ReferenceArchive


def compare(network: FeatureNetwork, samples: PictureFeatures, real: PictureFeatures) -> dict[str, float]:
    """Metrics of samples against real pictures, as far as the network's features and the numbers allow.

    Over Inception: ``fid``, ``kid``, ``sfid``, ``precision``, ``recall``, ``density``, ``coverage`` and
    ``inception_score``. Over any other network the same distances and shares carry its name, such as ``fd_<name>`` and
    ``precision_<name>``, and are not to be compared with Inception's.
    """
    published = network.name == INCEPTION
    metrics = distribution_metrics(network.name, samples.features, real.features)
    if samples.spatial is not None and real.spatial is not None:
        name = "sfid" if published else f"sfd_{network.name}"
        metrics[name] = frechet_distance(samples.spatial, real.spatial)
    if min(samples.num_images, real.num_images) > DENSITY_NEIGHBOURS:
        shares = manifold_metrics(samples.features, real.features)
        metrics |= {name if published else f"{name}_{network.name}": value for name, value in shares.items()}
    if network.has_logits and min(samples.num_images, real.num_images) >= INCEPTION_SCORE_SPLITS:
        metrics["inception_score"] = inception_score(samples.logits)
    return metrics


def against_pool(
    network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures
) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Metrics, floor and counts; the reference is the start of the pool, the other side of the floor is its end."""
    num_reference = min(samples.num_images, pool.num_images)
    num_floor = min(samples.num_images, pool.num_images // 2)
    metrics = compare(network, samples, pool.part(slice(num_reference)))
    first, other = pool.part(slice(num_floor)), pool.part(slice(pool.num_images - num_floor, None))
    floor = compare(network, other, first)  # the other half in the samples' place
    if num_floor < num_reference:
        at_floor_n = compare(network, samples.part(slice(num_floor)), first)
        metrics |= {key + AT_FLOOR_N: value for key, value in at_floor_n.items()}
    counts = {"num_images": samples.num_images, "num_reference": num_reference, "num_floor": num_floor}
    return metrics, floor, counts


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
