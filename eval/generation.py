"""Evaluation of an image generation pipeline: its samples against real pictures, with the real-against-real floor."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wvq.data import ImageDataset
from wvq.distributed import gather_objects, processes
from wvq.errors import ConfigError, DataError
from wvq.eval.archives import ReferenceArchive, write_archive
from wvq.eval.clip_score import CLIPScore
from wvq.eval.comparison import against_archive, against_pool, check_archive
from wvq.eval.features import FeatureNetwork, default_feature_network
from wvq.eval.metrics import small_sample_warnings
from wvq.eval.plan import class_plan, imbalance_warnings, prompt_plan
from wvq.eval.reference_cache import archive_features, cached_reference_features
from wvq.eval.references import PictureFeatures, reference_features, require_kind
from wvq.eval.results import make_result, network_settings
from wvq.eval.streaming import Batch, FeatureShards, collected, stream_features
from wvq.generator.conditioning import class_ids
from wvq.images import save_png, to_uint8, uint8_to_pil
from wvq.locks import sole_writer
from wvq.outputs import refuse_occupied

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline

FLOOR_BELOW = 50_000  # samples: with so many the floor is near 0, and the published figures have none


def evaluate_generation(
    pipeline: ImageGenerationPipeline,
    reference: ImageDataset | ReferenceArchive,
    num_images: int,
    classes: str | Sequence[str | int] | None = "auto",
    prompts: str | Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    feature_network: FeatureNetwork | None = None,
    progress: bool = True,
    *,
    reference_kind: str = "train",
    force_reference: bool = False,
    work: str | Path | None = None,
    save_samples: str | Path | None = None,
    clip: CLIPScore | None = None,
    cache: str | Path | None = None,
    **sampling,
) -> dict:
    """Draws samples and compares them with as many real pictures (fewer only if there are fewer).

    Samples are measured as they are drawn. Under several processes each draws its share; pictures and figures are the
    same on any number of them.

    Where a data set holds twice ``num_images``, the floor is measured at that N, against the same reference. Otherwise,
    and from 50,000 samples on, it compares the two halves of the pictures, and metrics that end in ``_at_floor_n``
    compare as many samples with one half: hold those against the floor. An archive's statistics, where it has any, take
    the place of the reference.

    Args:
        pipeline: the pipeline to evaluate.
        reference: real pictures, compared under the centre crop; or an archive.
        num_images: number of samples.
        classes: ``balanced`` (every class equally often), ``reference`` (the classes of the reference pictures),
            a list of names or ids to draw equally often, None for no class, or ``auto``: balanced where the pipeline
            has classes and no prompts are given.
        prompts: texts, repeated in turn; ``reference`` for the captions of the reference pictures; or None.
        seed: seed of the samples and of the choice of reference pictures.
        batch_size: samples and pictures in a batch; the result does not depend on it.
        feature_network: network of the distances; the default one if not given.
        progress: whether to show progress bars.
        reference_kind: ``train`` or ``validation``: what the reference holds. Samples are held against training
            pictures.
        force_reference: allow others; the result says so.
        work: folder for the features of the samples drawn so far: an evaluation that was stopped goes on there. It can
            be removed when the result is kept. A temporary one if None; several processes need one.
        save_samples: keep the samples: a folder for one PNG each, or an .npz file in the form of ADM's evaluation.
        clip: also measure how well samples fit their prompts (``clip_score``); needs prompts.
        cache: folder of features of real pictures (:mod:`wvq.eval.reference_cache`); none are kept if None.
        sampling: fields of :class:`wvq.generator.sampling.SamplingSettings`; the pipeline's own where None or left out.

    Returns:
        A result dict, see :mod:`wvq.eval.results`, with ``num_unreadable``, pictures passed over because they cannot be
        read; others were taken instead, as far as there are any.

    Raises:
        ConfigError: unknown classes, a count that cannot be balanced, a condition that the pipeline does not have, or a
            reference of the other kind.
        DataError: fewer than four pictures on a side, too many that cannot be read, or no captions or classes in the
            data where they are asked for.
        RunInterrupted: SIGTERM or Ctrl-C came; what is in ``work`` will be taken up again.
    """
    forced = require_kind("generation", reference_kind, force_reference)
    dataset = None if isinstance(reference, ReferenceArchive) else reference
    if num_images < 4 or (dataset is not None and len(dataset) < 4):
        raise DataError(f"generation needs at least 4 samples and 4 pictures, not {num_images} and {len(reference)}")
    if work is None and processes().num_processes > 1:
        raise ConfigError("an evaluation on several processes needs a result file (--out), beside which they work")
    sampling = asdict(pipeline.sampling.updated(**sampling))

    def conditions(indices: list[int]) -> tuple:
        labels, class_setting = class_plan(pipeline, dataset, indices, classes, prompts, num_images)
        return labels, class_setting, prompt_plan(dataset, indices, prompts, num_images)

    network = feature_network or default_feature_network()
    if dataset is None:
        check_archive(reference, network)
    if clip is not None and prompts is None:
        raise ConfigError("clip: a CLIP score needs prompts; give --prompts reference")
    order = reference_order(dataset, seed)
    conditions(order[:num_images])  # refuses what does not fit before pictures are read
    pool = _real_features(reference, network, reference_kind, order, num_images, batch_size, cache, progress)
    if dataset is None:  # files are often sorted by class; parts of the pool stand for all of it
        pool = pool.part(torch.randperm(pool.num_images, generator=torch.Generator().manual_seed(seed)))
    indices = pool.indices[:num_images] if dataset is not None else []
    labels, class_setting, texts = conditions(indices)

    def draw(run: range) -> Batch:
        images = draw_samples(pipeline, run, labels, texts, seed, batch_size, sampling)
        scores = {} if clip is None else {"clip": clip(images, texts[run.start : run.stop])}
        return Batch(images, list(run), scores=scores)

    with ExitStack() as stack:
        folder = work or stack.enter_context(tempfile.TemporaryDirectory(prefix="wvq-evaluation-"))
        stack.enter_context(sole_writer(folder, processes().is_main_process))
        identity = _identity(pipeline, network, num_images, seed, labels, texts, sampling)
        identity |= {"save_samples": save_samples and str(save_samples)} | (clip.description() if clip else {})
        shards = FeatureShards(folder, identity, lasting=work is not None)
        if save_samples is not None and not shards.resumed and processes().is_main_process:
            refuse_occupied(save_samples, "pictures")
        processes().wait_for_everyone()
        keep = save_samples is not None and Path(save_samples).suffix == ".npz"
        if save_samples is not None and not keep:
            draw = _saving(draw, Path(save_samples), seed)
        stream_features(draw, range(num_images), network, shards, batch_size, "samples" if progress else None, keep)
        result = None
        if processes().is_main_process:
            samples = collected(shards, "none", num_images)
            if dataset is None:
                metrics, floor, counts = against_archive(network, samples, reference, pool)
            else:
                metrics, floor, counts = against_pool(network, samples, pool)
            if clip is not None:
                metrics["clip_score"] = float(shards.read(("numbers", "clip"))[0]["clip"].double().mean())
            if keep:
                pixels = shards.read(("numbers", "pixels"))[0]["pixels"]
                ids = labels and class_ids(labels, tuple(pipeline.class_names), pipeline.generator.config.num_classes)
                write_archive(save_samples, pixels, ids)
            settings = {
                **sampling,
                "guidance_formula": "u + s (c - u)",
                "seed": seed,
                "batch_size": batch_size,
                "classes": class_setting,
                "prompts": prompts if prompts is None or isinstance(prompts, str) else list(prompts),
                "pipeline_weights": pipeline.weights_hashes(),
                "samples": samples.description(),
                "reference": _describe(reference, pool, counts["num_reference"]) | {"kind": reference_kind} | forced,
                **network_settings(network, samples.image_size),
                **(clip.description() if clip else {}),
            }
            warnings = [
                *pool.warnings,
                *network.warnings,
                *_warnings(network, samples, reference, pool, counts),
                *imbalance_warnings(dataset, indices, class_setting),
                *(["the reference holds validation pictures: not comparable with published figures"] if forced else []),
            ]
            result = make_result("generation", metrics, floor, **counts, settings=settings, warnings=warnings)
            result["num_unreadable"] = pool.num_unreadable
        result = gather_objects(result)[0]
    return result


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
    return to_uint8(output.images)


def pool_size(num_images: int) -> int:
    """Real pictures that samples and, for fewer than 50,000, their floor need."""
    return num_images * (2 if num_images < FLOOR_BELOW else 1)


def reference_order(dataset: ImageDataset | None, seed: int) -> list[int]:
    """The order that real pictures are taken in; none of an archive."""
    if dataset is None:
        return []
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()


def _real_features(
    reference: ImageDataset | ReferenceArchive,
    network: FeatureNetwork,
    kind: str,
    order: list[int],
    num_images: int,
    batch_size: int,
    cache: str | Path | None,
    progress: bool,
) -> PictureFeatures:
    """Features of as many real pictures as the reference and its floor need; of none where an archive has none."""
    if isinstance(reference, ReferenceArchive):
        return archive_features(reference, network, kind, batch_size, cache and Path(cache), progress)
    limit = pool_size(num_images)
    if cache is not None:
        pool = cached_reference_features(
            reference, network, Path(cache), kind, batch_size, order, limit, progress=progress
        )
    else:
        shown = "real features" if progress else None
        pool = reference_features(reference, network, batch_size, order, shown, limit)
    if pool.num_images < 4:
        raise DataError(f"generation needs at least 4 pictures that can be read, not {pool.num_images}")
    return pool


def _identity(
    pipeline: ImageGenerationPipeline,
    network: FeatureNetwork,
    num_images: int,
    seed: int,
    labels: list | None,
    texts: list | None,
    sampling: dict,
) -> dict:
    """What the samples and their features depend on."""
    conditions = hashlib.sha256(json.dumps([labels, texts]).encode()).hexdigest()
    return {
        "pipeline_weights": pipeline.weights_hashes(),
        "num_images": num_images,
        "seed": seed,
        "conditions": conditions,
        "sampling": sampling,
        "feature_network": network.name,
        "feature_network_sha256": network.weights_sha256,
    }


def _saving(draw, folder: Path, seed: int):
    """``draw`` that also writes each sample to ``<seed>.png``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)

    def draw_and_save(run: range) -> Batch:
        batch = draw(run)
        for number, picture in zip(batch.numbers, uint8_to_pil(batch.images), strict=True):
            save_png(picture, folder / f"{seed + number:06d}.png")
        return batch

    return draw_and_save


def _describe(reference: ImageDataset | ReferenceArchive, pool: PictureFeatures, used: int) -> dict:
    found = reference.description() if isinstance(reference, ReferenceArchive) else pool.description()
    return found | {"used": used}


def _warnings(
    network: FeatureNetwork,
    samples: PictureFeatures,
    reference: ImageDataset | ReferenceArchive,
    pool: PictureFeatures,
    counts: dict[str, int],
) -> list[str]:
    """What a reader of the figures must know of the numbers and sizes of pictures."""
    found = small_sample_warnings(network.dim, samples=samples.num_images, floor=counts["num_floor"] or network.dim)
    used, drawn = counts["num_reference"], samples.num_images
    if used < drawn and not isinstance(reference, ReferenceArchive):
        found.append(f"{drawn} samples are compared with {used} pictures: the data set has no more")
    elif used and used != drawn:
        which = "all metrics but fid and sfid compare" if reference.moments is not None else "the metrics compare"
        found.append(f"{which} {drawn} samples with {used} pictures of {reference.file.name}")
    if pool.num_images and samples.image_size != pool.image_size:
        found.append(f"image_size: samples have {samples.image_size} px, the real pictures {pool.image_size} px")
    return found
