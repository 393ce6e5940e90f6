"""All figures that compare one set of pictures with another, under the names of the network that saw them."""

from __future__ import annotations

from wvq.eval.features.networks import INCEPTION, FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures
from wvq.eval.figures.distances import (
    AT_FLOOR_N,
    INCEPTION_SCORE_SPLITS,
    distribution_metrics,
    frechet_distance,
    inception_score,
)
from wvq.eval.figures.manifold import DENSITY_NEIGHBOURS, manifold_metrics


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
