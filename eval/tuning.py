"""A short search over a few sampling settings: which of them draws samples that are closest to the training pictures.

from wvq.eval.tuning import CANDIDATES, search_sampling

search = search_sampling(pipe, images.train, CANDIDATES)
pipe.sampling = search.chosen.settings
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from wvq.data.dataset import ImageDataset
from wvq.data.pixels import to_uint8
from wvq.data.unreadable import Reading
from wvq.errors import ConfigError, DataError
from wvq.eval.features.networks import FeatureNetwork
from wvq.eval.features.pictures import evaluation_view
from wvq.eval.figures.defects import blank_below, coarse_pixels, contrast, defects, small_pictures
from wvq.eval.figures.distances import kernel_distance
from wvq.eval.figures.metrics import KERNEL
from wvq.eval.real.kinds import FEWEST
from wvq.eval.samples.conditions import condition_plan, reference_choice
from wvq.eval.samples.drawing import Samples
from wvq.generator.base.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline

# The freest first. What suits a model depends on how much of its data it has memorised: little guidance and a low
# temperature after many passes over few pictures, plain sampling after few passes.
CANDIDATES = (
    SamplingSettings(),
    SamplingSettings(top_p=0.95),
    SamplingSettings(guidance_scale=1.3, top_k=100),
    SamplingSettings(guidance_scale=1.5, temperature=0.9, top_p=0.9),
    SamplingSettings(temperature=0.8),
    SamplingSettings(guidance_scale=1.3, temperature=0.8, top_k=100),
    SamplingSettings(guidance_scale=2.0, temperature=0.8, top_k=100),
    SamplingSettings(guidance_scale=1.3, temperature=0.6, top_k=100),
)
ROUND = 32  # most samples of each setting between two looks at the clock
FIRST = 8  # samples of each setting in the first round; each later one doubles them, up to ROUND more
FEWEST_SETTINGS = 2  # that are tried however short the time is
MOST_IMAGES = 256  # samples of a setting: enough to rank them
MARGIN = 0.02  # share of samples that may be blank beyond that of the real pictures
TIE = 0.05  # distances that differ by less than this share count as equal


@dataclass(frozen=True)
class Trial:
    """One setting and the figures of its samples.

    Attributes:
        settings: the setting.
        distance: kernel distance from the real pictures.
        blank: share of samples that are nearly of one colour.
        repeated: share of samples that are not blank and look the same as another one before them.
    """

    settings: SamplingSettings
    distance: float
    blank: float
    repeated: float


@dataclass(frozen=True)
class SamplingSearch:
    """The settings that were tried, with the one that was chosen.

    Attributes:
        trials: one a setting that there was time for, in the order in which they were given.
        num_candidates: settings that were given.
        chosen: the best of them.
        reason: why, in one sentence.
        metric: name of the distance, which says whose features it is over.
        num_images: samples of each setting.
        num_reference: real pictures that they were compared with.
        real_blank, real_repeated: the shares of all real pictures that were read, up to the most samples of a setting.
        seed: sample i of each setting was drawn from seed + i.
        seconds: duration of the search.
    """

    trials: list[Trial]
    num_candidates: int
    chosen: Trial
    reason: str
    metric: str
    num_images: int
    num_reference: int
    real_blank: float
    real_repeated: float
    seed: int
    seconds: float

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows to show: the trials, and last the real pictures."""
        head = ["guidance", "temperature", "top-k", "top-p", self.metric, "blank", "repeated", ""]
        rows = []
        for trial in self.trials:
            one = trial.settings
            row = [f"{one.guidance_scale:g}", f"{one.temperature:g}", f"{one.top_k}", f"{one.top_p:g}"]
            row += [f"{trial.distance:.4f}", f"{trial.blank:.1%}", f"{trial.repeated:.1%}"]
            rows.append([*row, "chosen" if trial is self.chosen else ""])
        rows.append([*[""] * 5, f"{self.real_blank:.1%}", f"{self.real_repeated:.1%}", "training pictures"])
        return head, rows

    def result(self) -> dict[str, Any]:
        """The search as JSON values."""
        trials = [
            {
                **trial.settings.identity(),
                self.metric: trial.distance,
                "blank": trial.blank,
                "repeated": trial.repeated,
                "chosen": trial is self.chosen,
            }
            for trial in self.trials
        ]
        return {
            "trials": trials,
            "real": {"blank": self.real_blank, "repeated": self.real_repeated},
            "num_candidates": self.num_candidates,
            "num_images": self.num_images,
            "num_reference": self.num_reference,
            "seed": self.seed,
            "seconds": self.seconds,
            "reason": self.reason,
        }


def search_sampling(
    pipeline: ImageGenerationPipeline,
    dataset: ImageDataset,
    candidates: Sequence[SamplingSettings] = CANDIDATES,
    feature_network: FeatureNetwork | None = None,
    seed: int = 0,
    most_images: int = MOST_IMAGES,
    max_seconds: float = float("inf"),
    progress: bool = True,
) -> SamplingSearch:
    """Draw samples by each of a few settings and choose one; the pipeline is not changed.

    All settings draw the same conditions, those of the real pictures, from the same seeds, in rounds until there are
    enough samples or the time is over: each has as many samples as the others. Where the time is too short for a few
    samples of each, settings from all over the list are left out. The choice is :func:`choose`'s.

    Args:
        pipeline: draws the samples.
        dataset: the pictures that its generator was trained on.
        candidates: the settings, the freest first.
        feature_network: network of the kernel distance; coarse pixels if None.
        seed: sample i of each setting is drawn from seed + i.
        most_images: most samples of a setting.
        max_seconds: nothing begins that would probably end later than this, but a few samples of two settings.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: no candidates, or too few samples.
        DataError: fewer than four pictures that can be read, or too many that cannot.
    """
    if not candidates or most_images < FEWEST:
        raise ConfigError(f"a search needs at least one setting and {FEWEST} samples of each")
    started = time.perf_counter()
    real, indices = _real_pictures(dataset, most_images)
    config = pipeline.generator.config
    if not (config.num_classes or config.text_dim):  # there guidance does nothing
        candidates = list(dict.fromkeys(replace(one, guidance_scale=1.0) for one in candidates))
    classes, prompts = reference_choice(config)
    plan = condition_plan(config, dataset, indices, classes, prompts, most_images)
    samples = [Samples(pipeline, most_images, plan, settings, seed, ROUND) for settings in candidates]
    views = [_View(feature_network) for _ in candidates]
    count, tried = _draw(samples, views, started + max_seconds, progress)
    real_features = torch.cat([_features(feature_network, part) for part in real[:count].split(ROUND)])
    limit = blank_below(contrast(real))
    trials = [Trial(candidates[number], *views[number].figures(real_features, limit)) for number in tried]
    blank, copies = defects(contrast(real), small_pictures(real), limit)
    name = feature_network.name if feature_network else "pixels"
    [metric] = KERNEL.names_over(name)
    chosen, reason = choose(trials, blank, metric)
    if len(trials) < len(candidates):
        reason += f"; there was time to try {len(trials)} of {len(candidates)} settings, by {count} samples each"
    return SamplingSearch(
        trials,
        len(candidates),
        chosen,
        reason,
        metric,
        count,
        len(real_features),
        blank,
        copies,
        seed,
        seconds=round(time.perf_counter() - started, 1),
    )


def choose(trials: Sequence[Trial], real_blank: float, metric: str = "distance") -> tuple[Trial, str]:
    """The trial with the lowest distance among those that are not blank too often, and the reason in one sentence.

    Blank may be a share of ``MARGIN`` more of the samples than of the real pictures; where it is more in all trials,
    those with the fewest are compared. Of distances within ``TIE`` of the lowest the one with the most variety is
    taken: with the fewest blank and repeated samples, and of equals the first.

    Args:
        trials: at least one, the freest setting first.
        real_blank: share of the real pictures that are blank.
        metric: name of the distance, for the reason.
    """
    limit = max(real_blank + MARGIN, min(trial.blank for trial in trials))
    sound = [trial for trial in trials if trial.blank <= limit]
    lowest = min(trial.distance for trial in sound)
    tied = [trial for trial in sound if trial.distance <= lowest + TIE * abs(lowest)]
    chosen = min(tied, key=lambda trial: trial.blank + trial.repeated)
    among = f"settings with at most {limit:.1%} blank samples ({len(sound)} of {len(trials)})"
    if limit > real_blank + MARGIN:
        among = f"settings with the fewest blank samples ({limit:.1%}; all draw too many)"
    how = f"fewest blank and repeated samples among the lowest {metric} (within {TIE:.0%})"
    if len(tied) == 1:
        how = "the only one" if len(sound) == 1 else f"lowest {metric}"
    return chosen, f"{how} of the {among}"


def _draw(samples: Sequence[Samples], views: Sequence[_View], deadline: float, progress: bool) -> tuple[int, list[int]]:
    """Draw as many samples of each setting into its view as there is time for.

    Returns:
        How many those are, and the numbers of the settings that have them; the other views are empty.
    """
    most = samples[0].num_images
    run, tried, pace = range(min(FIRST, most)), list[int](), 0.0

    with tqdm(total=most * len(samples), desc="sampling settings", unit="img", disable=not progress) as bar:

        def add(number: int) -> float:
            """Draw a round of a setting; returns the seconds of one sample."""
            before = time.perf_counter()
            views[number].add(samples[number].draw(run).images)
            bar.update(len(run))
            return (time.perf_counter() - before) / len(run)

        def is_time_for(drawn: int) -> bool:
            """Whether there is time for so many samples, and for as many real pictures as each setting has samples."""
            return time.perf_counter() + pace * (drawn + run.stop) <= deadline

        for number in _spread_order(len(samples)):
            if len(tried) >= FEWEST_SETTINGS and not is_time_for(len(run)):
                break
            pace = add(number)
            tried.append(number)
        bar.total = most * len(tried)
        while (count := run.stop) < most:
            run = range(count, min(count + min(count, ROUND), most))
            if not is_time_for(len(run) * len(tried)):
                break
            pace = max(map(add, tried))
    return count, sorted(tried)


def _spread_order(count: int) -> list[int]:
    """The numbers below ``count``, of which the first few are always from all over: both ends, then the middle."""
    order = list(dict.fromkeys((0, count - 1)))
    while len(order) < count:
        rest = [number for number in range(count) if number not in order]
        order.append(max(rest, key=lambda number: min(abs(number - other) for other in order)))
    return order


class _View:
    """What the search keeps of samples that come in parts: their features, contrasts and small copies."""

    def __init__(self, network: FeatureNetwork | None):
        self._network = network
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, images: Tensor) -> None:
        """Take in uint8 pictures (B, 3, H, W)."""
        features = _features(self._network, images)
        self._parts.append((features, contrast(images), small_pictures(images)))

    def figures(self, real_features: Tensor, blank_limit: float) -> tuple[float, float, float]:
        """Distance from real pictures, share of blank pictures, and share of repeated ones among the others."""
        features, contrasts, small = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        return kernel_distance(features, real_features), *defects(contrasts, small, blank_limit)


def _features(network: FeatureNetwork | None, images: Tensor) -> Tensor:
    return coarse_pixels(images) if network is None else network(images).features.cpu()


def _real_pictures(dataset: ImageDataset, limit: int) -> tuple[Tensor, list[int]]:
    """Up to ``limit`` pictures drawn at random, uint8 (N, 3, H, W) under the crop of evaluations, and their indices."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    reading = Reading(evaluation_view(dataset), order, limit)
    pictures = [to_uint8(item["pixel_values"]) for item in reading]
    reading.refuse_too_many()
    if len(pictures) < FEWEST:
        raise DataError(f"a search needs at least {FEWEST} training pictures that can be read, not {len(pictures)}")
    return torch.stack(pictures), reading.used
