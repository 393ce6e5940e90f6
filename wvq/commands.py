"""What each subcommand does with its parsed arguments. Heavy modules are imported when a command runs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from wvq.errors import ConfigError, WVQError, first_line
from wvq.recipes import AtomicRecipe, DataConfig, ExportRecipe, GeneratorRecipe, QuickstartRecipe, TokenizerRecipe


def _recipe(values, recipe: type):
    return recipe(**{field.name: getattr(values, field.name) for field in fields(recipe)})


def _quiet_libraries() -> None:
    """Bars over single weight files say nothing to a user. Also tells Accelerate where to run on CPUs."""
    import datasets
    import torch
    import transformers

    # Apple's GPUs have no float64, in which distances and sums over data sets are taken.
    if torch.backends.mps.is_available() or not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.utils.logging.disable_progress_bar()


def _device(name: str | None) -> str:
    import torch

    if name is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each process has a device of its own
            from wvq.distributed import processes

            return str(processes().device)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return "cpu" if accelerator is None or accelerator.type == "mps" else str(accelerator)
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'device "{name}" cannot be used here ({first_line(error)})') from error
    return name


def _is_main_process() -> bool:
    from wvq.distributed import processes

    return processes().is_main_process


def _data_options(data: DataConfig) -> str:
    """The fields that differ from their defaults, as options: the next stage must hold out the same pictures."""
    plain = DataConfig()
    changed = {field.name: getattr(data, field.name) for field in fields(data)}
    changed = {name: value for name, value in changed.items() if value != getattr(plain, name) or name == "path"}
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
    return " ".join(f"--data.{name} {shlex.quote(value)}" for name, value in shown.items())


def quickstart(values) -> None:
    _quiet_libraries()
    from wvq.quickstart import run_quickstart

    run_quickstart(_recipe(values, QuickstartRecipe))


def train_tokenizer(values) -> None:
    _quiet_libraries()
    from wvq.tokenizer.train import train_tokenizer as train

    recipe = _recipe(values, TokenizerRecipe)
    result = train(recipe, resume=values.resume)
    if _is_main_process():
        _print_figures(result)
        out = shlex.quote(recipe.out)
        print(f"\ntokenizer in {recipe.out}; next: wvq export-codes --tokenizer {out} {_data_options(recipe.data)}")


def export_codes(values) -> None:
    _quiet_libraries()
    from wvq.tokenizer.export import export_codes as export

    recipe = _recipe(values, ExportRecipe)
    header = export(recipe)
    if not _is_main_process():
        return
    psnr = ", ".join(f"{split} {value:.2f} dB" for split, value in header.psnr_rgb.items())
    print(f"codes of {header.num_images} pictures x {header.num_crops} in {recipe.out}; rows decode at PSNR {psnr}")
    if header.layout["kind"] == "grid":
        print(f"next: wvq train-generator --tokenizer {recipe.tokenizer} --codes {recipe.out}")
    else:
        print(f"no generator is trained over {header.layout['kind']} codes yet")


def train_generator(values) -> None:
    _quiet_libraries()
    from wvq.pipelines.assemble import train_pipeline

    recipe = _recipe(values, GeneratorRecipe)
    result, _ = train_pipeline(recipe, resume=values.resume)
    if _is_main_process():
        _print_figures(result)
        print(f"\npipeline in {recipe.out}; next: wvq sample {shlex.quote(recipe.out)}")


def sample(values) -> None:
    _quiet_libraries()
    from wvq.pipelines.image_generation import ImageGenerationPipeline
    from wvq.pipelines.sampling_job import SHEET_NAME, sample_to_folder

    if values.prompt and values.prompt_file:
        raise ConfigError("--prompt and --prompt-file are both given; leave one of them out")
    prompts = _prompt_lines(values.prompt_file) if values.prompt_file else values.prompt
    pipe = ImageGenerationPipeline.from_pretrained(
        values.pipeline, device=_device(values.device), weights=values.weights
    )
    classes = [int(name) if name.isdigit() and name not in pipe.class_names else name for name in values.classes or []]
    files = sample_to_folder(
        pipe,
        values.out,
        class_labels=classes or None,
        prompt=prompts,
        num_images=values.num_images,
        seed=values.seed,
        batch_size=values.batch_size,
        resume=values.resume,
        source=values.pipeline,
        **_sampling(values),
    )
    if _is_main_process():
        if values.temperature == 0:
            print("temperature 0: the likeliest code each time, whatever the seed")
        print(f"{len(files)} pictures in {values.out}, the first ones on {Path(values.out) / SHEET_NAME}")


def _prompt_lines(file: str) -> list[str]:
    """Prompts of a text file, one a line; blank lines do not count."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"prompt_file: {file} cannot be read ({reason})") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"prompt_file: {file} holds no prompts; write one a line")
    return prompts


def _sampling(values) -> dict:
    from wvq.generator.sampling import SamplingSettings

    return {field.name: getattr(values, field.name) for field in fields(SamplingSettings)}


def evaluate_reconstruction(values) -> None:
    _quiet_libraries()
    from wvq.data import load_images
    from wvq.eval.reconstruction import evaluate_reconstruction as evaluate
    from wvq.eval.summary import reconstruction_blocks
    from wvq.splits import other_split
    from wvq.tokenizer.modeling import WassersteinVQModel

    _check_out(values.out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("evaluate reconstruction runs on one process; start it without a launcher")
    tokenizer = WassersteinVQModel.from_pretrained(values.tokenizer).to(_device(values.device))
    if values.reference:
        raise ConfigError("reference: reconstructions need the pictures themselves; give --data.path")
    tokenizer.config.require_image_size(values.data.image_size, values.tokenizer)
    kind = values.reference_kind or "validation"
    network = _feature_network(values)
    lpips = _lpips(values.lpips, tokenizer.device) if values.lpips else None
    dataset = _part(load_images(values.data), kind)
    result = evaluate(
        tokenizer,
        dataset,
        feature_network=network,
        batch_size=values.batch_size,
        lpips=lpips,
        reference_kind=kind,
        force_reference=values.force_reference,
    )
    if warning := other_split(values.tokenizer, values.data):
        result["warnings"].append(warning)
    result["settings"]["tokenizer"] = values.tokenizer
    _save_result(values.out, result, lambda: reconstruction_blocks(tokenizer, dataset))


def _lpips(weights: str, device):
    from wvq.tokenizer.losses import LPIPS

    try:
        return LPIPS(None if weights == "download" else weights).to(device)
    except WVQError as error:  # which speaks of training's fields
        raise type(error)(str(error).replace("loss.perceptual_weights", "--lpips").partition(", or set ")[0]) from error


def evaluate_generation(values) -> None:
    _quiet_libraries()
    from wvq.data import load_images
    from wvq.eval.archives import read_archive
    from wvq.eval.clip_score import CLIPScore
    from wvq.eval.generation import evaluate_generation as evaluate
    from wvq.eval.generation import pool_size, reference_order
    from wvq.eval.presets import find_preset, fixed_by
    from wvq.eval.reference_cache import cached_reference_features, default_cache
    from wvq.eval.references import require_kind
    from wvq.eval.streaming import remove_shards
    from wvq.eval.summary import generation_blocks
    from wvq.eval.sweeps import parse_sweep
    from wvq.pipelines.image_generation import ImageGenerationPipeline

    pipe = ImageGenerationPipeline.from_pretrained(
        values.pipeline, device=_device(values.device), weights=values.weights
    )
    _check_out(values.out)
    published = {}
    if values.preset:
        for name, value in fixed_by(values.preset, vars(values)).items():
            setattr(values, name, value)
        preset = find_preset(values.preset)
        published = {"preset": values.preset, "published": preset.published}
        if not values.reference or values.weights:
            raise ConfigError(
                f"preset {values.preset} is measured against ADM's training statistics, with full weights: give "
                "--reference FILE.npz and leave --weights out"
            )
        if pipe.tokenizer.config.image_size != preset.image_size:
            size = pipe.tokenizer.config.image_size
            raise ConfigError(f"preset {values.preset} is for {preset.image_size} px; this pipeline draws {size} px")
    kind = values.reference_kind or (None if values.reference else "train")
    if kind is None:
        raise ConfigError(f"--reference-kind must say what {values.reference} holds: train or validation pictures")
    require_kind("generation", kind, values.force_reference)
    if values.reference:
        reference = read_archive(values.reference)
    else:
        reference = _part(load_images(_at_size(values.data, pipe.tokenizer.config.image_size)), kind)
    network = _feature_network(values)
    shared = {
        "num_images": 1000 if values.num_images is None else values.num_images,
        "classes": {None: "auto", "none": None}.get(values.classes, values.classes),
        "prompts": values.prompts,
        "seed": values.seed,
        "batch_size": values.batch_size,
        "feature_network": network,
        "reference_kind": kind,
        "force_reference": values.force_reference,
        "clip": CLIPScore(values.clip, pipe.device) if values.clip else None,
        "cache": default_cache(),
    }
    sampling = _sampling(values)
    field, steps = parse_sweep(values.sweep) if values.sweep else (None, [])
    works = [_work(values.out), *(_work(values.out, f".{field}-{step}") for step in steps)]
    result = evaluate(pipe, reference, **shared, work=works[0], save_samples=values.save_samples, **sampling)
    result["settings"] |= {"pipeline": values.pipeline, "weights": values.weights, **published}
    rows = []
    for step, work in zip(steps, works[1:], strict=True):
        found = evaluate(pipe, reference, **shared, work=work, **(sampling | {field: step}))
        rows.append({field: step, **found["metrics"]})
    if rows:
        result["sweep"] = {"field": field, "rows": rows}
    pool = None
    if values.out and not values.reference:  # all processes read their share
        order, limit = reference_order(reference, values.seed), pool_size(shared["num_images"])
        pool = cached_reference_features(
            reference, network, default_cache(), kind, values.batch_size, order, limit, progress=False
        )
    if _is_main_process():
        dataset = None if values.reference else reference
        _save_result(values.out, result, lambda: generation_blocks(pipe, result, network, dataset, pool, sampling))
        for work in filter(None, works):  # only now that the result is kept
            remove_shards(work)


def _check_out(out: str | None) -> None:
    if out and Path(out).suffix in (".md", ".html", ".npz"):
        raise ConfigError(f"out: {out} must be a JSON file; a text and a page are written beside it")


def _work(out: str | None, name: str = "") -> str | None:
    """Where an evaluation keeps what it has drawn so far."""
    return out and f"{out}{name}.partial"


def _part(images, kind: str):
    """The pictures of a data set that are a reference of this kind."""
    from wvq.eval.references import KINDS

    if kind not in KINDS.values():
        raise ConfigError(f"reference_kind must be train or validation, not {kind!r}")
    return images.train if kind == "train" else images.validation


def _at_size(data: DataConfig, image_size: int) -> DataConfig:
    from dataclasses import replace

    return replace(data, image_size=image_size)


def _feature_network(values):
    from wvq.eval.features import default_feature_network, load_feature_network

    device = _device(values.device)
    if values.feature_network is None or values.inception_weights:
        if values.feature_network not in (None, "inception"):
            raise ConfigError("--inception-weights goes with the feature network inception; leave one of them out")
        return default_feature_network(values.inception_weights, device)
    return load_feature_network(values.feature_network, device=device)


def _save_result(out: str | None, result: dict, blocks: Callable[[], list]) -> None:
    from wvq.eval.results import write_result
    from wvq.eval.summary import write_summary

    print(f"{result['num_images']:,} pictures against {result['num_reference']:,}:")
    _print_figures(result["metrics"])
    for name, value in result["settings"].get("published", {}).items():
        print(f"published under {result['settings']['preset']}: {name} {value}")
    if result["floor"]:
        print(f"floor, real against real, N = {result['num_floor']:,} a side (as the figures at_floor_n):")
        _print_figures(result["floor"])
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    if out:
        write_result(out, result)
        text, page = write_summary(out, result, blocks())
        print(f"result in {out}, {text} and, with pictures, {page}")


def evaluate_compare(values) -> None:
    from wvq.eval.ranking import compare_results

    print(compare_results(values.results))


def study_atomic(values) -> None:
    from wvq.eval.atomic_study import run_study, study_table

    recipe = _recipe(values, AtomicRecipe)
    print(study_table(run_study(recipe)))
    print(f"results, table.md and plots in {recipe.out}")


def info(values) -> None:
    from wvq.describe import describe

    print(describe(values.path))


def _print_figures(figures: dict) -> None:
    shown = {name: value for name, value in figures.items() if isinstance(value, int | float | str)}
    width = max(map(len, shown), default=0) + 2
    for name, value in shown.items():
        print(f"  {name:<{width}}{f'{value:,.4f}' if isinstance(value, float) else value}")
