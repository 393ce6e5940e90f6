"""An evaluation by its recipe: load, measure, and write the result as JSON, as a text and as a page.

from wvq.eval.recipes import GenerationEvaluation
from wvq.eval.run import run_generation_evaluation

result = run_generation_evaluation(GenerationEvaluation(pipeline="runs/openmoji", num_images=100, out="fid.json"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wvq.data.dataset import ImageSplits
from wvq.data.opening import StreamSplits, open_images
from wvq.data.stream import Pictures, numbered_pictures
from wvq.devices import usable_device
from wvq.distributed import is_main_process
from wvq.errors import ConfigError
from wvq.eval.features.clip_score import CLIPScore
from wvq.eval.features.networks import FeatureNetwork, default_feature_network, load_feature_network
from wvq.eval.features.shards import remove_shards
from wvq.eval.generation import evaluate_generation
from wvq.eval.presets import find_preset, with_preset
from wvq.eval.real.archive import read_archive
from wvq.eval.real.cache import usable_cache
from wvq.eval.real.fingerprints import check_seen, fingerprint_settings
from wvq.eval.real.references import ArchiveReference, DatasetReference, Reference, pool_size
from wvq.eval.recipes import EvaluationRecipe, GenerationEvaluation, ReconstructionEvaluation
from wvq.eval.reconstruction import evaluate_reconstruction
from wvq.eval.report.blocks import generation_blocks, reconstruction_blocks
from wvq.eval.report.results import write_result
from wvq.eval.report.summary import Block, refuse_foreign_files, summary_files, write_summary
from wvq.eval.samples.conditions import check_conditions
from wvq.eval.sweeps import parse_sweep
from wvq.files.fingerprint import DataFingerprint
from wvq.generator.sampling import check_sampling
from wvq.models.pretrained import resolve_folder
from wvq.pipelines.folders import read_configs, read_sampling
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.data import DataConfig
from wvq.settings.size import Size, size_text
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import LPIPS
from wvq.tokenizer.modeling import WassersteinVQModel

NUM_IMAGES = 1_000  # samples where a recipe names no number


def run_reconstruction_evaluation(recipe: ReconstructionEvaluation, progress: bool = True) -> dict[str, Any]:
    """Measure the tokenizer of a recipe; several processes share the work.

    Args:
        recipe: what to measure, and against what.
        progress: whether to show progress bars.

    Returns:
        The result (:mod:`wvq.eval.report.results`), in every process.

    Raises:
        ConfigError: a field that is out of range, or another file where the result should go.
        CheckpointError, DataError, DownloadError: what the recipe names cannot be loaded or measured.
        RunInterrupted: SIGTERM or Ctrl-C came; the same recipe goes on from there.
    """
    recipe.check()
    _check_place(recipe.out, recipe.overwrite)
    device, work = usable_device(recipe.device), _work(recipe.out)
    tokenizer = WassersteinVQModel.from_pretrained(recipe.tokenizer).to(device)
    tokenizer.config.require_image_size(recipe.data, recipe.tokenizer)
    images = open_images(recipe.data)
    images.inventory.show()
    seen = {recipe.tokenizer: tokenizer.data_fingerprint}
    fingerprint, warnings = check_seen(images, recipe.kind, recipe.data, seen)
    dataset = _part(images, recipe.kind)
    result = evaluate_reconstruction(
        tokenizer,
        dataset,
        feature_network=_feature_network(recipe, device),
        batch_size=recipe.batch_size,
        progress=progress,
        lpips=_lpips(recipe.lpips, device),
        reference_kind=recipe.kind,
        force_reference=recipe.force_reference,
        work=work,
        cache=usable_cache(),
        num_workers=recipe.num_workers,
    )
    result["warnings"] += warnings
    if warning := tokenizer.config.other_fit(recipe.data, recipe.tokenizer):
        result["warnings"].append(warning)
    result["settings"] |= {"tokenizer": recipe.tokenizer, "data": recipe.data.path}
    result["settings"] |= fingerprint_settings(data=fingerprint, tokenizer=tokenizer.data_fingerprint)
    _save(recipe.out, result, lambda: reconstruction_blocks(tokenizer, dataset), [work])
    return result


def run_generation_evaluation(recipe: GenerationEvaluation, progress: bool = True) -> dict[str, Any]:
    """Measure a pipeline's samples by a recipe, with its preset and its sweep; several processes share the work.

    Args:
        recipe: what to draw, and what to compare it with.
        progress: whether to show progress bars.

    Returns:
        The result (:mod:`wvq.eval.report.results`), in every process; with ``sweep``, the figures over its range.

    Raises:
        ConfigError: a field that is out of range, or another file where the result should go.
        CheckpointError, DataError, DownloadError: what the recipe names cannot be loaded or measured.
        RunInterrupted: SIGTERM or Ctrl-C came; the same recipe goes on from there.
    """
    recipe.check()
    recipe = with_preset(recipe)
    field, steps = parse_sweep(recipe.sweep) if recipe.sweep is not None else ("", [])
    _check_place(recipe.out, recipe.overwrite)
    device = usable_device(recipe.device)
    folder = resolve_folder(recipe.pipeline, "pipeline")
    tokenizer, generator = read_configs(folder)
    published = _published(recipe, tokenizer)
    _require_image_size(recipe, tokenizer.image_size)
    num_images = _num_images(recipe, generator.num_classes)
    # Before weights and pictures are read.
    check_conditions(generator, recipe.class_choice, recipe.prompts, num_images)
    for changes in ({}, *({field: step} for step in steps)):
        check_sampling(generator, read_sampling(folder).updated(**recipe.sampling | changes))
    pipe = ImageGenerationPipeline.from_pretrained(folder, device=device, weights=recipe.weights)
    real, fingerprint, warnings = _reference(recipe, tokenizer.image_size, num_images, pipe)
    network = _feature_network(recipe, device)
    clip = CLIPScore(recipe.clip, device) if recipe.clip else None

    def measure(sampling: dict[str, Any], work: str | None, save_samples: str | None = None) -> dict[str, Any]:
        return evaluate_generation(
            pipe,
            real,
            num_images,
            classes=recipe.class_choice,
            prompts=recipe.prompts,
            seed=recipe.seed,
            batch_size=recipe.batch_size,
            feature_network=network,
            progress=progress,
            resize=recipe.resize,
            work=work,
            save_samples=save_samples,
            clip=clip,
            **sampling,
        )

    works = [_work(recipe.out), *(_work(recipe.out, f".{field}-{step}") for step in steps)]
    result = measure(recipe.sampling, works[0], recipe.save_samples)
    result["warnings"] += warnings
    if not recipe.reference and (warning := tokenizer.other_fit(recipe.data, recipe.pipeline)):
        result["warnings"].append(warning)
    result["settings"] |= {"pipeline": recipe.pipeline, "data": recipe.reference or recipe.data.path, **published}
    result["settings"] |= fingerprint_settings(
        data=fingerprint, generator=pipe.generator.data_fingerprint, tokenizer=pipe.tokenizer.data_fingerprint
    )
    if steps:
        swept = [measure(recipe.sampling | {field: step}, work) for step, work in zip(steps, works[1:], strict=True)]
        rows = [{field: step, **other["metrics"]} for step, other in zip(steps, swept, strict=True)]
        result["sweep"] = {"field": field, "rows": rows}
    _save(recipe.out, result, lambda: generation_blocks(pipe, result, network, real, recipe.sampling), works)
    return result


def _num_images(recipe: GenerationEvaluation, num_classes: int) -> int:
    """The samples of a recipe; where it names no number 1,000, or as many below it as balance the classes."""
    if recipe.num_images is not None:
        return recipe.num_images
    balanced = num_classes and not recipe.prompts and recipe.class_choice in ("auto", "balanced")
    return max(num_classes, NUM_IMAGES - NUM_IMAGES % num_classes) if balanced else NUM_IMAGES


def _published(recipe: GenerationEvaluation, tokenizer: WassersteinVQConfig) -> dict[str, Any]:
    """The settings of a result that name its preset.

    Raises:
        ConfigError: the pipeline draws pictures of another size than the preset's, or codes of another layout.
    """
    if recipe.preset is None:
        return {}
    preset, image_size, kind = find_preset(recipe.preset), tokenizer.image_size, tokenizer.code_layout["kind"]
    if preset.layout not in (None, kind):
        raise ConfigError(f"preset {recipe.preset} is for {preset.layout} codes; this pipeline draws {kind} codes")
    if image_size != preset.image_size:
        raise ConfigError(
            f"preset {recipe.preset} is for {preset.image_size} px; this pipeline draws {size_text(image_size)} px"
        )
    return {"preset": recipe.preset, "published": preset.published}


def _require_image_size(recipe: GenerationEvaluation, image_size: Size) -> None:
    """Refuse a size of the real pictures that is given and is not that of the samples, which they are read at.

    Raises:
        ConfigError: they differ.
    """
    size = recipe.resize or image_size
    if recipe.reference is None and recipe.data.size not in (DataConfig.image_size, image_size, size):
        raise ConfigError(
            f"data.image_size is {recipe.data.size}, and real pictures are read at the size of the samples, "
            f"{size_text(size)} px; leave it out (--resize brings samples to another size)"
        )


def _reference(
    recipe: GenerationEvaluation, image_size: Size, num_images: int, pipe: ImageGenerationPipeline
) -> tuple[Reference, DataFingerprint | None, list[str]]:
    """The real pictures that samples of a size are compared with, their fingerprint, and what to say of them.

    Of a stream they are the first ones, as many as the samples need.

    Raises:
        ConfigError: they are held-out pictures that the pipeline was trained on.
    """
    if recipe.reference:
        archive = read_archive(recipe.reference)
        return ArchiveReference(archive, recipe.kind, recipe.force_reference, usable_cache()), None, []
    size = recipe.resize or image_size
    images = open_images(replace(recipe.data, image_size=size))
    images.inventory.remark(f"read at the size of the samples, {size_text(size)} px")
    images.inventory.show()
    seen = {recipe.pipeline: pipe.generator.data_fingerprint}
    if recipe.kind == "validation":
        seen[f"{recipe.pipeline}/tokenizer"] = pipe.tokenizer.data_fingerprint
    fingerprint, warnings = check_seen(images, recipe.kind, recipe.data, seen)
    dataset = numbered_pictures(_part(images, recipe.kind), pool_size(num_images))
    real = DatasetReference(dataset, recipe.kind, recipe.force_reference, usable_cache(), recipe.num_workers)
    return real, fingerprint, warnings


def _part(images: ImageSplits | StreamSplits, kind: str) -> Pictures:
    """The pictures of a data set that are a reference of this kind."""
    return images.train if kind == "train" else images.validation


def _feature_network(recipe: EvaluationRecipe, device: str) -> FeatureNetwork:
    if recipe.feature_network is None or recipe.inception_weights:
        return default_feature_network(recipe.inception_weights, device)
    return load_feature_network(recipe.feature_network, device=device)


def _lpips(weights: str | None, device: str) -> LPIPS | None:
    """The network of LPIPS: its backbone from a file, or by ``download``."""
    return LPIPS(None if weights == "download" else weights, option="--lpips").to(device) if weights else None


def _check_place(out: str | None, overwrite: bool) -> None:
    """Refuse a result file that would overwrite something else, or a finished result without ``overwrite``."""
    if out is None:
        return
    if Path(out).is_dir():
        raise ConfigError(f"out: {out} is a folder; name a JSON file")
    refuse_foreign_files(out)
    there = [file for file in (Path(out), *summary_files(out)) if file.exists()]
    # An evaluation that was stopped has left its working folder, also one that had begun to write over a result.
    if there and not overwrite and not Path(f"{out}.partial").exists():
        raise ConfigError(f"out: {there[0]} is the result of an evaluation; choose another name, or give --overwrite")


def _work(out: str | None, name: str = "") -> str | None:
    """Working folder of an evaluation: holds what it has drawn so far."""
    return None if out is None else f"{out}{name}.partial"


def _save(
    out: str | None, result: dict[str, Any], blocks: Callable[[], list[Block]], works: Sequence[str | None]
) -> None:
    """In the main process, write the result, its text and its page, and remove the working folders."""
    if out is None or not is_main_process():
        return
    write_result(out, result)
    write_summary(out, result, blocks())
    for work in filter(None, works):  # only now that the result is kept
        remove_shards(work)
