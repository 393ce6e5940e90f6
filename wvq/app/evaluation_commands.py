"""What the subcommands of ``wvq evaluate`` do with their parsed arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wvq.app.commands import device_of, is_main_process, print_figures, quiet_libraries, sampling_of
from wvq.errors import ConfigError, WVQError


def evaluate_reconstruction(values) -> None:
    """``wvq evaluate reconstruction``.

    Raises:
        ConfigError: an archive in place of pictures.
    """
    quiet_libraries()
    from wvq.data.dataset import load_images
    from wvq.data.splits import other_split
    from wvq.eval.features.pictures import require_kind
    from wvq.eval.real.cache import usable_cache
    from wvq.eval.reconstruction import evaluate_reconstruction as evaluate
    from wvq.eval.report.blocks import reconstruction_blocks
    from wvq.tokenizer.modeling import WassersteinVQModel

    _check_out(values.out)
    if values.reference:
        raise ConfigError("reference: reconstructions need the pictures themselves; give --data.path")
    device = device_of(values.device)
    tokenizer = WassersteinVQModel.from_pretrained(values.tokenizer).to(device)
    tokenizer.config.require_image_size(values.data.image_size, values.tokenizer)
    kind, work = values.reference_kind or "validation", _work(values.out)
    require_kind("reconstruction", kind, values.force_reference)
    dataset = _part(load_images(values.data), kind)
    result = evaluate(
        tokenizer,
        dataset,
        feature_network=_feature_network(values),
        batch_size=values.batch_size,
        lpips=_lpips(values.lpips, tokenizer.device) if values.lpips else None,
        reference_kind=kind,
        force_reference=values.force_reference,
        work=work,
        cache=usable_cache(),
        num_workers=values.num_workers,
    )
    if warning := other_split(values.tokenizer, values.data):
        result["warnings"].append(warning)
    result["settings"] |= {"tokenizer": values.tokenizer, "data": values.data.path}
    if is_main_process():
        _save_result(values.out, result, lambda: reconstruction_blocks(tokenizer, dataset), [work])


def _lpips(weights: str, device):
    from wvq.tokenizer.losses import LPIPS

    try:
        return LPIPS(None if weights == "download" else weights).to(device)
    except WVQError as error:  # which speaks of training's fields
        raise type(error)(str(error).replace("loss.perceptual_weights", "--lpips").partition(", or set ")[0]) from error


def evaluate_generation(values) -> None:
    """``wvq evaluate generation``.

    Raises:
        ConfigError: an archive of unknown kind, or options that a preset rules out.
    """
    quiet_libraries()
    from wvq.data.dataset import load_images
    from wvq.eval.features.clip_score import CLIPScore
    from wvq.eval.features.pictures import require_kind
    from wvq.eval.generation import evaluate_generation as evaluate
    from wvq.eval.real.archive import read_archive
    from wvq.eval.real.cache import usable_cache
    from wvq.eval.real.references import RealPictures
    from wvq.eval.report.blocks import generation_blocks
    from wvq.eval.samples.drawing import check_resize
    from wvq.eval.sweeps import parse_sweep
    from wvq.pipelines.image_generation import ImageGenerationPipeline

    _check_out(values.out)
    check_resize(values.resize)
    device = device_of(values.device)
    pipe = ImageGenerationPipeline.from_pretrained(values.pipeline, device=device, weights=values.weights)
    size = pipe.tokenizer.config.image_size
    published = _apply_preset(values, size) if values.preset else {}
    kind = values.reference_kind or (None if values.reference else "train")
    if kind is None:
        raise ConfigError(f"--reference-kind must say what {values.reference} holds: train or validation pictures")
    require_kind("generation", kind, values.force_reference)
    if values.reference:
        source = read_archive(values.reference)
    else:
        source = _part(load_images(replace(values.data, image_size=values.resize or size)), kind)
    real = RealPictures(source, kind, values.force_reference, usable_cache(), values.num_workers)
    network = _feature_network(values)
    count = values.num_images
    count = _default_count(values, pipe.generator.config.num_classes) if count is None else count
    shared = {
        "num_images": count,
        "classes": {None: "auto", "none": None}.get(values.classes, values.classes),
        "prompts": values.prompts,
        "seed": values.seed,
        "batch_size": values.batch_size,
        "feature_network": network,
        "resize": values.resize,
        "clip": CLIPScore(values.clip, pipe.device) if values.clip else None,
    }
    sampling = sampling_of(values)
    field, steps = parse_sweep(values.sweep) if values.sweep else (None, [])
    works = [_work(values.out), *(_work(values.out, f".{field}-{step}") for step in steps)]
    result = evaluate(pipe, real, **shared, work=works[0], save_samples=values.save_samples, **sampling)
    result["settings"] |= {"pipeline": values.pipeline, "data": values.reference or values.data.path, **published}
    rows = []
    for step, work in zip(steps, works[1:], strict=True):
        found = evaluate(pipe, real, **shared, work=work, **(sampling | {field: step}))
        rows.append({field: step, **found["metrics"]})
    if rows:
        result["sweep"] = {"field": field, "rows": rows}
    if is_main_process():
        _save_result(values.out, result, lambda: generation_blocks(pipe, result, network, real, sampling), works)


def _default_count(values, num_classes: int) -> int:
    """1,000 samples, or as many below it as balance the classes."""
    balanced = num_classes and not values.prompts and values.classes in (None, "auto", "balanced")
    return max(num_classes, 1000 - 1000 % num_classes) if balanced else 1000


def _apply_preset(values, image_size: int) -> dict:
    """Set the options that a preset fixes; what a result says of it."""
    from wvq.eval.presets import find_preset, fixed_by

    for name, value in fixed_by(values.preset, vars(values)).items():
        setattr(values, name, value)
    preset = find_preset(values.preset)
    if not values.reference or values.weights:
        raise ConfigError(
            f"preset {values.preset} is measured against ADM's training statistics, with full weights: give "
            "--reference FILE.npz and leave --weights out"
        )
    if image_size != preset.image_size:
        raise ConfigError(f"preset {values.preset} is for {preset.image_size} px; this pipeline draws {image_size} px")
    return {"preset": values.preset, "published": preset.published}


def _check_out(out: str | None) -> None:
    if out and Path(out).suffix in (".md", ".html", ".npz"):
        raise ConfigError(f"out: {out} must be a JSON file; a text and a page are written beside it")
    if out and Path(out).is_dir():
        raise ConfigError(f"out: {out} is a folder; name a JSON file")
    if out:
        from wvq.eval.report.blocks import refuse_foreign_files

        refuse_foreign_files(out)


def _work(out: str | None, name: str = "") -> str | None:
    """Where an evaluation keeps what it has drawn so far."""
    return out and f"{out}{name}.partial"


def _part(images, kind: str):
    """The pictures of a data set that are a reference of this kind."""
    return images.train if kind == "train" else images.validation


def _feature_network(values):
    from wvq.eval.features.networks import default_feature_network, load_feature_network

    device = device_of(values.device)
    if values.feature_network is None or values.inception_weights:
        if values.feature_network not in (None, "inception"):
            raise ConfigError("--inception-weights goes with the feature network inception; leave one of them out")
        return default_feature_network(values.inception_weights, device)
    return load_feature_network(values.feature_network, device=device)


def _save_result(out: str | None, result: dict, blocks: Callable[[], list], works: list[str | None]) -> None:
    from wvq.eval.features.shards import remove_shards
    from wvq.eval.report.blocks import write_summary
    from wvq.eval.report.results import write_result

    print(f"{result['num_images']:,} pictures against {result['num_reference']:,}:")
    print_figures(result["metrics"])
    for name, value in result["settings"].get("published", {}).items():
        print(f"published under {result['settings']['preset']}: {name} {value}")
    if result["floor"]:
        print(f"floor, real against real, N = {result['num_floor']:,} a side (as the figures at_floor_n):")
        print_figures(result["floor"])
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    if out:
        write_result(out, result)
        text, page = write_summary(out, result, blocks())
        print(f"result in {out}, {text} and, with pictures, {page}")
    for work in filter(None, works):  # only now that the result is kept
        remove_shards(work)


def evaluate_compare(values) -> None:
    """``wvq evaluate compare``."""
    from wvq.eval.compare import compare_results

    print(compare_results(values.results))
