"""Evaluation of an image generation pipeline: its samples against real pictures, with the real-against-real floor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wvq.data import ImageDataset
from wvq.errors import ConfigError, DataError
from wvq.eval.features import FeatureNetwork, default_feature_network
from wvq.eval.metrics import (
    AT_FLOOR_N,
    INCEPTION_SCORE_SPLITS,
    distribution_metrics,
    inception_score,
    real_floor,
    small_sample_warnings,
)
from wvq.eval.references import PictureFeatures, collect_features, reference_features
from wvq.eval.results import make_result, network_settings
from wvq.generator.conditioning import class_ids
from wvq.images import to_uint8

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline


def evaluate_generation(
    pipeline: ImageGenerationPipeline,
    dataset: ImageDataset,
    num_images: int,
    classes: str | Sequence[str | int] | None = "auto",
    prompts: str | Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    feature_network: FeatureNetwork | None = None,
    progress: bool = True,
    **sampling,
) -> dict:
    """Draws samples and compares them with as many real pictures (fewer only if the data set has fewer).

    Where the data set holds twice ``num_images``, the floor is measured at that N, against the same reference.
    Otherwise it compares the two halves of the data set, and metrics that end in ``_at_floor_n`` compare as many
    samples with one half: hold those against the floor.

    Args:
        pipeline: the pipeline to evaluate.
        dataset: real pictures; they are compared under the centre crop.
        num_images: number of samples.
        classes: ``balanced`` (every class equally often), ``reference`` (the classes of the reference pictures),
            a list of names or ids to draw equally often, None for no class, or ``auto``: balanced where the pipeline
            has classes and no prompts are given.
        prompts: texts, repeated in turn; ``reference`` for the captions of the reference pictures; or None.
        seed: seed of the samples and of the choice of reference pictures.
        batch_size: samples and pictures in a batch; the result does not depend on it.
        feature_network: network of the distances; the default one if not given.
        progress: whether to show progress bars.
        sampling: fields of :class:`wvq.generator.sampling.SamplingSettings`; the pipeline's own where None or left out.

    Returns:
        A result dict, see :mod:`wvq.eval.results`, with ``num_unreadable``, pictures passed over because they cannot be
        read; others were taken instead, as far as there are any.

    Raises:
        ConfigError: unknown classes, a count that cannot be balanced, or a condition that the pipeline does not have.
        DataError: fewer than four pictures on a side, too many that cannot be read, no captions or classes in the data
            where they are asked for, or samples of another size.
    """
    if num_images < 4 or len(dataset) < 4:
        raise DataError(f"generation needs at least 4 samples and 4 pictures, not {num_images} and {len(dataset)}")
    sampling = asdict(pipeline.sampling.updated(**sampling))
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()

    def conditions(indices: list[int]) -> tuple:
        labels, class_setting = _class_labels(pipeline, dataset, indices, classes, prompts, num_images)
        return labels, class_setting, _prompts(dataset, indices, prompts, num_images)

    conditions(order[:num_images])  # refuses what does not fit before pictures are read
    network = feature_network or default_feature_network()
    shown = "real features" if progress else None
    pool = reference_features(dataset, network, batch_size, order, shown, limit=2 * num_images)
    if pool.num_images < 4:
        raise DataError(f"generation needs at least 4 pictures that can be read, not {pool.num_images}")
    reference_indices = pool.indices[:num_images]
    labels, class_setting, texts = conditions(reference_indices)
    pictures = sample_pictures(pipeline, num_images, labels, texts, seed, batch_size, **sampling)
    samples = collect_features(pictures, network, num_images, "none", "samples" if progress else None)
    if samples.image_size != pool.image_size:
        raise DataError(f"image_size: samples have {samples.image_size} px, the pictures {pool.image_size} px")

    num_reference = len(reference_indices)
    num_floor = min(num_images, pool.num_images // 2)
    metrics, floor = _compare(network, samples, pool, num_reference, num_floor)
    warnings = [*pool.warnings, *network.warnings]
    warnings += [*small_sample_warnings(network.dim, samples=num_images, floor=num_floor)]
    if num_reference < num_images:
        warnings.append(f"{num_images} samples are compared with {num_reference} pictures: the data set has no more")
    warnings += _imbalance_warnings(dataset, reference_indices, class_setting)
    result = make_result(
        kind="generation",
        metrics=metrics,
        floor=floor,
        num_images=num_images,
        num_reference=num_reference,
        num_floor=num_floor,
        settings={
            **sampling,
            "seed": seed,
            "batch_size": batch_size,
            "classes": class_setting,
            "prompts": prompts if prompts is None or isinstance(prompts, str) else list(prompts),
            "samples": samples.description(),
            "reference": pool.description() | {"used": num_reference},
            **network_settings(network, samples.image_size),
        },
        warnings=warnings,
    )
    return result | {"num_unreadable": pool.num_unreadable}


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
        stop = min(start + batch_size, num_images)
        conditions = {}
        if class_labels is not None:
            conditions["class_labels"] = list(class_labels[start:stop])
        if prompts is not None:
            conditions["prompt"] = list(prompts[start:stop])
        output = pipeline(
            **conditions,
            num_images=stop - start,
            seed=seed + start,
            batch_size=batch_size,
            output_type="pt",
            **sampling,
        )
        yield to_uint8(output.images)


def _compare(
    network: FeatureNetwork, samples: PictureFeatures, pool: PictureFeatures, num_reference: int, num_floor: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and floor; the reference is the start of the pool, the other side of the floor is its end."""
    name, real = network.name, pool.features
    metrics = distribution_metrics(name, samples.features, real[:num_reference])
    floor = real_floor(name, real[:num_floor], real[-num_floor:])
    if num_floor < num_reference:
        at_floor_n = distribution_metrics(name, samples.features[:num_floor], real[:num_floor])
        metrics |= {key + AT_FLOOR_N: value for key, value in at_floor_n.items()}
    if network.has_logits and min(samples.num_images, num_reference) >= INCEPTION_SCORE_SPLITS:
        metrics["inception_score"] = inception_score(samples.logits)
        floor["inception_score"] = inception_score(pool.logits[:num_reference])
    return metrics, floor


def _class_labels(
    pipeline: ImageGenerationPipeline,
    dataset: ImageDataset,
    reference_indices: list[int],
    classes: str | Sequence[str | int] | None,
    prompts: str | Sequence[str] | None,
    num_images: int,
) -> tuple[list[str | int] | None, str | list | None]:
    """One class a sample, and how the result describes the choice."""
    names, num_classes = tuple(pipeline.class_names), pipeline.generator.config.num_classes
    if isinstance(classes, str) and classes == "auto":
        classes = "balanced" if num_classes and prompts is None else None
    if classes is None:
        return None, None
    if not num_classes:
        raise ConfigError("classes: this pipeline has no classes; give prompts, or classes=None")
    if isinstance(classes, str):
        if classes == "reference":
            return _repeat(_reference_classes(dataset, reference_indices, names), num_images), classes
        if classes != "balanced":
            raise ConfigError(f"classes must be auto, balanced, reference, a list or None, not {classes!r}")
        chosen = list(range(num_classes))
    else:
        chosen = list(classes)
        class_ids(chosen, names, num_classes)
        if not chosen:
            raise ConfigError("classes is an empty list; give class names or ids, or None")
    if num_images % len(chosen):
        below = num_images // len(chosen) * len(chosen)
        near = " or ".join(str(count) for count in (below, below + len(chosen)) if count)
        raise ConfigError(f"num_images={num_images} cannot be balanced over {len(chosen)} classes; use {near}")
    return _repeat(chosen, num_images), classes if isinstance(classes, str) else chosen


def _reference_classes(dataset: ImageDataset, indices: list[int], names: tuple[str, ...]) -> list[str]:
    if dataset.labels is None:
        raise DataError("classes='reference' needs pictures with classes; this data set has none")
    known = [dataset.class_names[dataset.labels[index]] for index in indices if dataset.labels[index] >= 0]
    unknown = sorted(set(known) - set(names))
    if unknown or not known:
        raise DataError(f"classes='reference': the pipeline does not know {unknown[0]!r}" if unknown else "no labels")
    return known


def _prompts(
    dataset: ImageDataset, reference_indices: list[int], prompts: str | Sequence[str] | None, num_images: int
) -> list[str] | None:
    if prompts is None:
        return None
    if isinstance(prompts, str):
        if prompts != "reference":
            raise ConfigError(f"prompts must be a list of texts or 'reference', not {prompts!r}")
        if dataset.captions is None:
            raise DataError("prompts='reference' needs pictures with captions; this data set has none")
        prompts = [dataset.captions[index] for index in reference_indices]
    if not prompts:
        raise ConfigError("prompts is an empty list")
    return _repeat(prompts, num_images)


def _repeat(items: Sequence, count: int) -> list:
    return [items[position % len(items)] for position in range(count)]


def _imbalance_warnings(dataset: ImageDataset, indices: list[int], class_setting: str | list | None) -> list[str]:
    if class_setting != "balanced" or dataset.labels is None:
        return []
    counts = Counter(dataset.labels[index] for index in indices)
    largest, smallest = max(counts.values()), min(counts.get(label, 0) for label in range(len(dataset.class_names)))
    if largest <= 1.5 * smallest + 3:
        return []
    return [
        f"samples are balanced over classes, the reference is not ({smallest} to {largest} pictures a class): "
        f"classes='reference' draws the classes of the reference pictures"
    ]
