"""The metrics of an evaluation, one entry each: names, what it needs, which way is better, how it is computed.

A new metric is one more entry of METRICS; the result, its floor, the report and the ranking follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from wvq.eval.features.names import INCEPTION
from wvq.eval.features.networks import FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures
from wvq.eval.figures.distances import INCEPTION_SCORE_SPLITS, frechet_distance, inception_score, kernel_distance
from wvq.eval.figures.manifold import DENSITY_NEIGHBOURS, Neighbourhoods, manifold_metrics


def _features(pictures: PictureFeatures) -> Tensor | None:
    """The features of the distances: one vector a picture."""
    return pictures.features


@dataclass(frozen=True)
class Metric:
    """One or more figures that are computed together from the features of samples and of real pictures.

    Attributes:
        names: names of the figures over Inception features, as they are published.
        elsewhere: their names over another network, which takes the place of ``{}``: not comparable with Inception's.
        higher: whether more is better.
        compute: the figures, in the order of the names, from features of N samples and of M real pictures.
        features: which output of the network ``compute`` takes; the metric is left out where there is none.
        fewest: pictures that it needs a side; it is left out where there are fewer.
        of_samples: whether it depends on the samples alone.
    """

    names: tuple[str, ...]
    elsewhere: tuple[str, ...]
    higher: bool
    compute: Callable[[Tensor, Tensor], Sequence[float]]
    features: Callable[[PictureFeatures], Tensor | None] = _features
    fewest: int = 2
    of_samples: bool = False

    def names_over(self, network: str) -> list[str]:
        """Names of the figures over the features of a network."""
        return list(self.names) if network == INCEPTION else [name.format(network) for name in self.elsewhere]


FRECHET = Metric(("fid",), ("fd_{}",), higher=False, compute=lambda a, b: [frechet_distance(a, b)])
KERNEL = Metric(("kid",), ("kd_{}",), higher=False, compute=lambda a, b: [kernel_distance(a, b)])
SPATIAL = Metric(
    ("sfid",),
    ("sfd_{}",),
    higher=False,
    compute=lambda a, b: [frechet_distance(a, b)],
    features=lambda pictures: pictures.spatial,
)
NEIGHBOURHOODS = Metric(
    Neighbourhoods._fields,
    tuple(f"{name}_{{}}" for name in Neighbourhoods._fields),
    higher=True,
    compute=manifold_metrics,
    fewest=DENSITY_NEIGHBOURS + 1,
)
INCEPTION_SCORE = Metric(
    ("inception_score",),
    ("inception_score",),
    higher=True,
    compute=lambda samples, _: [inception_score(samples)],
    features=lambda pictures: pictures.logits,
    fewest=INCEPTION_SCORE_SPLITS,
    of_samples=True,
)
DISTANCES = (FRECHET, KERNEL)
METRICS = (*DISTANCES, SPATIAL, NEIGHBOURHOODS, INCEPTION_SCORE)
# Figures that are computed elsewhere, by the start of their names: the CLIP score, and those of a tokenizer.
_HIGHER_ELSEWHERE = ("clip_score", "psnr", "ssim", "utilization", "perplexity", "codes")


def compare(
    network: FeatureNetwork, samples: PictureFeatures, real: PictureFeatures, metrics: Sequence[Metric] | None = None
) -> dict[str, float]:
    """Metrics of samples against real pictures, as far as the network's outputs and the numbers allow.

    Args:
        network: gave the features of both.
        samples: the pictures that are judged.
        real: the pictures that they are compared with.
        metrics: which ones; METRICS if not given.

    Returns:
        Figures by name.
    """
    figures: dict[str, float] = {}
    for metric in METRICS if metrics is None else metrics:
        drawn = metric.features(samples)
        reference = drawn if metric.of_samples else metric.features(real)
        if drawn is not None and reference is not None and min(len(drawn), len(reference)) >= metric.fewest:
            figures |= zip(metric.names_over(network.name), metric.compute(drawn, reference), strict=True)
    return figures


def is_better_higher(name: str) -> bool:
    """Whether more is better for a figure of that name, in a result of samples or of reconstructions."""
    higher = [known for metric in METRICS if metric.higher for known in metric.names]
    return name.removeprefix("joint_").startswith((*higher, *_HIGHER_ELSEWHERE))
