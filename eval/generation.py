"""Evaluation of an image generation pipeline: its samples against real pictures, with the real-against-real floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wvq.checks import PATH, integer, require
from wvq.data.dataset import ImageDataset
from wvq.distributed import decided_by_first_process, gather_objects, is_main_process
from wvq.errors import ConfigError, DataError
from wvq.eval.features.clip_score import CLIPScore
from wvq.eval.features.networks import FeatureNetwork, default_feature_network, network_settings
from wvq.eval.features.pictures import PictureFeatures
from wvq.eval.features.shards import FeatureShards, collected, holds_shards, stream_features, working_folder
from wvq.eval.real.archive import ReferenceArchive, write_archive
from wvq.eval.real.kinds import FEWEST
from wvq.eval.real.references import Reference, as_reference
from wvq.eval.recipes import RESIZE, check_clip
from wvq.eval.report.results import make_result
from wvq.eval.samples.conditions import Conditions, condition_plan, plan_warnings
from wvq.eval.samples.drawing import Samples, Saving
from wvq.files.user_folders import expand_user
from wvq.pipelines.conditions import check_call
from wvq.settings.size import size_text

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline


def evaluate_generation(
    pipeline: ImageGenerationPipeline,
    reference: Reference | ImageDataset | ReferenceArchive,
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
    **sampling: Any,
) -> dict:
    """Draw samples and compare them with as many real pictures (fewer only if there are fewer).

    Samples are measured as they are drawn. Under several processes each draws its share; pictures and figures are the
    same on any number of them but for rounding.

    Where a data set holds twice ``num_images``, the floor is measured at that N, against the same reference. Otherwise,
    and from 50,000 samples on, it compares the two halves of the pictures, and metrics that end in ``_at_floor_n``
    compare as many samples with one half: compare those with the floor. An archive's statistics, where it has any, take
    the place of the reference.

    Args:
        pipeline: the pipeline to evaluate.
        reference: training pictures or an archive of them; one of :mod:`wvq.eval.real.references` for other pictures,
            for a cache of features, or for several evaluations against the same pictures.
        num_images: number of samples.
        classes: ``balanced`` (every class equally often), ``reference`` (the classes of the reference pictures; those
            without a class are skipped, for captions too),
            a list of names or ids to draw equally often, None for no class, or ``auto``: balanced where the pipeline
            has classes and no prompts are given.
        prompts: texts, repeated in turn; ``reference`` for the captions of the reference pictures; or None.
        seed: seed of the samples; the reference pictures do not depend on it.
        batch_size: samples and pictures in a batch; the result depends on it by rounding alone.
        feature_network: network of the distances; the default one if not given.
        progress: whether to show progress bars.
        resize: side in pixels that samples are brought to before they are measured
            (:func:`wvq.eval.samples.drawing.resized`); as drawn if None.
        work: folder for the features of the samples drawn so far: an evaluation that was stopped goes on there. It can
            be removed when the result is kept. A temporary one if None; several processes need one.
        save_samples: keep the samples: a folder for one PNG each, or an .npz file in the form of ADM's evaluation.
        clip: also measure how well samples fit their prompts (``clip_score``); needs prompts.
        sampling: fields of :class:`SamplingSettings`; the pipeline's own where None or left out.

    Returns:
        A result dict, see :mod:`wvq.eval.report.results`, with ``num_unreadable``, pictures skipped because they
        cannot be read; others were taken instead, as far as there are any.

    Raises:
        ConfigError: unknown classes, a count that cannot be balanced, a condition that the pipeline does not have, or
            ``resize`` for pictures that are not square.
        DataError: fewer than four pictures on a side, too many that cannot be read, or no captions or classes in the
            data where they are requested.
        RunInterrupted: SIGTERM or Ctrl-C came; the same call goes on from ``work``.
    """
    save_samples = None if save_samples is None else expand_user(save_samples, "save_samples", PATH)
    real, network = as_reference(reference), feature_network or default_feature_network()
    real.check(network)
    seed, batch_size = check_call(seed, batch_size)
    num_images = require("num_images", num_images, integer(0))
    if num_images < FEWEST:
        raise DataError(f"generation needs at least {FEWEST} samples and {FEWEST} pictures, not {num_images} samples")
    check_clip(clip, prompts)
    resize = require("resize", resize, RESIZE)
    if resize is not None and not isinstance(size := pipeline.tokenizer.config.image_size, int):
        raise ConfigError(f"resize makes squares, and this pipeline draws {size_text(size)} px; leave it out")
    settings = pipeline.sampling.updated(**sampling)

    def conditions(indices: list[int]) -> Conditions:
        return condition_plan(pipeline.generator.config, real.dataset, indices, classes, prompts, num_images)

    conditions(real.order()[:num_images])  # refuses conditions that do not fit before pictures are read
    with working_folder(work) as folder:
        pool = real.pool(network, num_images, batch_size, progress)
        plan = conditions(pool.indices[:num_images])
        samples = Samples(pipeline, num_images, plan, settings, seed, batch_size, resize, clip)
        saving = Saving(save_samples, seed, new=decided_by_first_process(lambda: not holds_shards(folder)))
        shards = FeatureShards(
            folder, _identity(samples, network, save_samples), work is not None, samples.former_identity
        )
        label = "samples" if progress else None
        draw = saving.around(samples.draw)
        stream_features(draw, range(num_images), network, shards, batch_size, label, saving.archive)
        result = None
        if is_main_process():
            features = collected(shards, "none", num_images)
            result = _result(samples, features, real, pool, network, prompts)
            if clip is not None:
                result["metrics"]["clip_score"] = float(shards.read(("numbers", "clip"))[0]["clip"].double().mean())
            if saving.archive and save_samples is not None:
                write_archive(save_samples, shards.pictures(), num_images, plan.ids)
        return gather_objects(result)[0]


def _identity(samples: Samples, network: FeatureNetwork, save_samples: str | Path | None) -> dict[str, Any]:
    """All that the files of a working folder depend on."""
    return {
        **samples.identity,
        "feature_network": network.name,
        "feature_network_sha256": network.weights_sha256,
        "save_samples": save_samples and str(save_samples),
    }


def _result(
    samples: Samples,
    features: PictureFeatures,
    real: Reference,
    pool: PictureFeatures,
    network: FeatureNetwork,
    prompts: str | Sequence[str] | None,
) -> dict[str, Any]:
    """The figures of samples whose features are there, with their settings and warnings."""
    comparison = real.compare(network, features, pool)
    drawn = samples.settings()
    settings = drawn | {
        "prompts": prompts if prompts is None or isinstance(prompts, str) else list(prompts),
        "samples": features.description(),
        "reference": real.description(pool, comparison.num_reference),
        **network_settings(network, features.image_size),
        **({} if samples.clip is None else samples.clip.description()),
    }
    warnings = [
        *real.warnings(network, features, pool, comparison),
        *plan_warnings(real.dataset, pool.indices[: samples.num_images], drawn["classes"], prompts),
    ]
    result = make_result("generation", comparison, settings, warnings)
    return result | {"num_unreadable": pool.num_unreadable}
