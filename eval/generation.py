"""Evaluation of an image generation pipeline: its samples against real pictures, with the real-against-real floor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from wvq.data.dataset import ImageDataset
from wvq.distributed import decided_by_first_process, gather_objects, processes
from wvq.errors import ConfigError, DataError
from wvq.eval.features.clip_score import CLIPScore
from wvq.eval.features.networks import FeatureNetwork, default_feature_network, network_settings
from wvq.eval.features.shards import Batch, FeatureShards, collected, holds_shards, stream_features, working_folder
from wvq.eval.real.archive import ReferenceArchive, write_archive
from wvq.eval.real.references import RealPictures
from wvq.eval.report.results import make_result
from wvq.eval.samples.conditions import condition_plan, plan_warnings
from wvq.eval.samples.drawing import Saving, check_resize, draw_samples
from wvq.generator.conditioning import class_ids

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline


def evaluate_generation(
    pipeline: ImageGenerationPipeline,
    reference: RealPictures | ImageDataset | ReferenceArchive,
    num_images: int,
    classes: str | Sequence[str | int] | None = "auto",
    prompts: str | Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    feature_network: FeatureNetwork | None = None,
    progress: bool = True,
    *,
    resize: int | None = None,
    work: str | Path | None = None,
    save_samples: str | Path | None = None,
    clip: CLIPScore | None = None,
    **sampling,
) -> dict:
    """Draws samples and compares them with as many real pictures (fewer only if there are fewer).

    Samples are measured as they are drawn. Under several processes each draws its share; pictures and figures are the
    same on any number of them but for rounding.

    Where a data set holds twice ``num_images``, the floor is measured at that N, against the same reference. Otherwise,
    and from 50,000 samples on, it compares the two halves of the pictures, and metrics that end in ``_at_floor_n``
    compare as many samples with one half: hold those against the floor. An archive's statistics, where it has any, take
    the place of the reference.

    Args:
        pipeline: the pipeline to evaluate.
        reference: training pictures or an archive of them; a :class:`wvq.eval.real.references.RealPictures` for others,
            for a cache of features, or for several evaluations against the same pictures.
        num_images: number of samples.
        classes: ``balanced`` (every class equally often), ``reference`` (the classes of the reference pictures; those
            without a class are passed over, for captions too),
            a list of names or ids to draw equally often, None for no class, or ``auto``: balanced where the pipeline
            has classes and no prompts are given.
        prompts: texts, repeated in turn; ``reference`` for the captions of the reference pictures; or None.
        seed: seed of the samples; the reference pictures do not depend on it.
        batch_size: samples and pictures in a batch; the result depends on it by rounding alone.
        feature_network: network of the distances; the default one if not given.
        progress: whether to show progress bars.
        resize: side in pixels that samples are brought to before they are measured (:func:`resized`); as drawn if None.
        work: folder for the features of the samples drawn so far: an evaluation that was stopped goes on there. It can
            be removed when the result is kept. A temporary one if None; several processes need one.
        save_samples: keep the samples: a folder for one PNG each, or an .npz file in the form of ADM's evaluation.
        clip: also measure how well samples fit their prompts (``clip_score``); needs prompts.
        sampling: fields of :class:`SamplingSettings`; the pipeline's own where None or left out.

    Returns:
        A result dict, see :mod:`wvq.eval.report.results`, with ``num_unreadable``, pictures passed over because they
        cannot be read; others were taken instead, as far as there are any.

    Raises:
        ConfigError: unknown classes, a count that cannot be balanced, or a condition that the pipeline does not have.
        DataError: fewer than four pictures on a side, too many that cannot be read, or no captions or classes in the
            data where they are asked for.
        RunInterrupted: SIGTERM or Ctrl-C came; what is in ``work`` will be taken up again.
    """
    real = reference if isinstance(reference, RealPictures) else RealPictures(reference)
    network = feature_network or default_feature_network()
    real.check(network)
    if num_images < 4:
        raise DataError(f"generation needs at least 4 samples and 4 pictures, not {num_images} samples")
    if clip is not None and prompts is None:
        raise ConfigError("clip: a CLIP score needs prompts; give --prompts reference")
    check_resize(resize)
    chosen = pipeline.sampling.updated(**sampling)
    sampling = asdict(chosen)

    def conditions(indices: list[int]) -> tuple:
        return condition_plan(pipeline, real.dataset, indices, classes, prompts, num_images)

    conditions(real.order()[:num_images])  # refuses what does not fit before pictures are read
    with working_folder(work) as folder:
        pool = real.pool(network, num_images, batch_size, progress)
        indices = pool.indices[:num_images] if real.dataset is not None else []
        labels, class_setting, texts = conditions(indices)
        former = {"pipeline_weights": pipeline.former_hashes(), "conditions": _conditions_hash(labels, texts)}
        ids = labels and class_ids(labels, tuple(pipeline.class_names), pipeline.generator.config.num_classes)
        identity = {
            "pipeline_weights": pipeline.weights_hashes(former["pipeline_weights"]),
            "num_images": num_images,
            "seed": seed,
            "conditions": _conditions_hash(ids, texts),  # by id: what a name stands for is the config's
            "sampling": chosen.identity(),
            "resize": resize,
            "feature_network": network.name,
            "feature_network_sha256": network.weights_sha256,
            "save_samples": save_samples and str(save_samples),
            **pipeline.numerics(),
            **(clip.description() if clip else {}),
        }

        def draw(run: range) -> Batch:
            images = draw_samples(pipeline, run, labels, texts, seed, batch_size, sampling, resize)
            scores = {} if clip is None else {"clip": clip(images, texts[run.start : run.stop])}
            return Batch(images, list(run), scores=scores)

        new = decided_by_first_process(lambda: not holds_shards(folder))
        saving = Saving(save_samples, seed, new)
        shards = FeatureShards(folder, identity, lasting=work is not None, former=former)
        shown = "samples" if progress else None
        stream_features(saving.around(draw), range(num_images), network, shards, batch_size, shown, saving.archive)
        result = None
        if processes().is_main_process:
            samples = collected(shards, "none", num_images)
            metrics, floor, counts = real.compare(network, samples, pool)
            if clip is not None:
                metrics["clip_score"] = float(shards.read(("numbers", "clip"))[0]["clip"].double().mean())
            if saving.archive:
                write_archive(save_samples, shards.pictures(), num_images, ids)
            settings = {
                **sampling,
                "guidance_formula": "u + s (c - u)",
                "resize": resize,
                "resize_filter": resize and "bicubic without antialiasing, before rounding",
                "seed": seed,
                "batch_size": batch_size,
                "classes": class_setting,
                "prompts": prompts if prompts is None or isinstance(prompts, str) else list(prompts),
                "pipeline_weights": identity["pipeline_weights"],
                **pipeline.numerics(),
                "samples": samples.description(),
                "reference": real.description(pool, counts["num_reference"]),
                **network_settings(network, samples.image_size),
                **(clip.description() if clip else {}),
            }
            warnings = [
                *real.warnings(network, samples, pool, counts),
                *plan_warnings(real.dataset, indices, class_setting, prompts),
            ]
            result = make_result("generation", metrics, floor, **counts, settings=settings, warnings=warnings)
            result["num_unreadable"] = pool.num_unreadable
        return gather_objects(result)[0]


def _conditions_hash(labels: list | None, texts: list[str] | None) -> str:
    return hashlib.sha256(json.dumps([labels, texts]).encode()).hexdigest()
