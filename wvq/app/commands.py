"""What each subcommand does with its parsed arguments. Heavy modules are imported when a command runs."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from wvq.app.recipes import QuickstartRecipe
from wvq.checks import PATH
from wvq.errors import ConfigError
from wvq.eval.recipes import AtomicRecipe, GenerationEvaluation, ReconstructionEvaluation
from wvq.files.names import INDEX_NAME
from wvq.files.plain_text import text_lines
from wvq.files.user_folders import expand_user
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.recipes import GeneratorRecipe
from wvq.pipelines.published.catalogue import catalogue_text
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.settings.data import DataConfig
from wvq.settings.parser import recipe_of
from wvq.tokenizer.recipes import ExportRecipe, ImportCodesRecipe, TokenizerRecipe


def quiet_libraries() -> None:
    """Switch off the progress bars of other libraries; without a GPU, make Accelerate run on the CPU."""
    import datasets
    import torch
    import transformers

    # Apple's GPUs have no float64, in which distances and sums over data sets are computed.
    if torch.backends.mps.is_available() or not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.utils.logging.disable_progress_bar()


def _data_options(data: DataConfig) -> str:
    """The fields that differ from their defaults, as options: the next stage must hold out the same pictures."""
    defaults = DataConfig()
    changed = {field.name: getattr(data, field.name) for field in fields(data)}
    changed = {name: value for name, value in changed.items() if value != getattr(defaults, name) or name == "path"}
    options = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
    return " ".join(f"--data.{name} {shlex.quote(value)}" for name, value in options.items())


def quickstart(values: Namespace) -> None:
    """Run ``wvq quickstart``."""
    quiet_libraries()
    from wvq.app.quickstart import run_quickstart

    run_quickstart(recipe_of(values, QuickstartRecipe))


def train_tokenizer(values: Namespace) -> None:
    """Run ``wvq train-tokenizer``."""
    quiet_libraries()
    from wvq.distributed import is_main_process
    from wvq.tokenizer.train import train_tokenizer as train

    recipe = recipe_of(values, TokenizerRecipe)
    result = train(recipe, resume=values.resume)
    if is_main_process():
        print_figures(result)
        out = shlex.quote(recipe.out)
        print(f"\ntokenizer in {recipe.out}; next: wvq export-codes --tokenizer {out} {_data_options(recipe.data)}")


def export_codes(values: Namespace) -> None:
    """Run ``wvq export-codes``."""
    quiet_libraries()
    from wvq.distributed import is_main_process
    from wvq.tokenizer.export import export_codes as export

    recipe = recipe_of(values, ExportRecipe)
    header = export(recipe)
    if not is_main_process():
        return
    psnr = ", ".join(f"{split} {value:.2f} dB" for split, value in header.psnr_rgb.items())
    counts = " and ".join(f"{count:,} {split}" for split, count in header.num_images.items())
    print(f"codes of {counts} pictures x {header.num_crops} in {recipe.out}; rows decode at PSNR {psnr}")
    tokenizer, codes = shlex.quote(recipe.tokenizer), shlex.quote(recipe.out)
    print(f"next: wvq train-generator --tokenizer {tokenizer} --codes {codes}")


def import_codes(values: Namespace) -> None:
    """Run ``wvq import-codes``."""
    quiet_libraries()
    from wvq.tokenizer.import_codes import import_codes as make_cache

    recipe = recipe_of(values, ImportCodesRecipe)
    header = make_cache(recipe)
    counts = " and ".join(f"{count:,} {split}" for split, count in header.num_images.items())
    print(f"codes of {counts} pictures x {header.num_crops} in {recipe.out}; {len(header.class_names):,} classes")
    if recipe.tokenizer is not None:
        tokenizer, codes = shlex.quote(recipe.tokenizer), shlex.quote(recipe.out)
        print(f"next: wvq train-generator --tokenizer {tokenizer} --codes {codes}")


def train_generator(values: Namespace) -> None:
    """Run ``wvq train-generator``."""
    quiet_libraries()
    from wvq.distributed import is_main_process
    from wvq.pipelines.assemble import train_pipeline

    recipe = recipe_of(values, GeneratorRecipe)
    result, _ = train_pipeline(recipe, resume=values.resume)
    if is_main_process():
        print_figures(result)
        print(f"\npipeline in {recipe.out}; next: wvq sample {shlex.quote(recipe.out)}")


def sample(values: Namespace) -> None:
    """Run ``wvq sample``.

    Raises:
        ConfigError: prompts from two places, or what the pipeline refuses.
    """
    quiet_libraries()
    from wvq.devices import usable_device
    from wvq.distributed import is_main_process
    from wvq.pipelines.image_generation import ImageGenerationPipeline
    from wvq.pipelines.sampling_job import SHEET_NAME, sample_to_folder

    if values.prompt and values.prompt_file:
        raise ConfigError("--prompt and --prompt-file are both given; leave one of them out")
    prompts = values.prompt
    if values.prompt_file is not None:
        prompts = text_lines(values.prompt_file, "prompt_file", "prompts")
    out = expand_user(values.out, "out", PATH)  # before the pipeline is loaded
    pipe = ImageGenerationPipeline.from_pretrained(
        values.pipeline, device=usable_device(values.device), weights=values.weights
    )
    files = sample_to_folder(
        pipe,
        out,
        class_labels=values.classes,
        prompt=prompts,
        num_images=values.num_images,
        seed=values.seed,
        batch_size=values.batch_size,
        resume=values.resume,
        source=values.pipeline,
        image=values.image,
        mask_image=values.mask_image,
        keep_scales=values.keep_scales,
        preview=values.preview,
        **sampling_of(values),
    )
    if is_main_process():
        if values.temperature == 0:
            print("temperature 0: the likeliest code each time, whatever the seed")
        pictures = "1 picture" if len(files) == 1 else f"{len(files):,} pictures"
        print(f"{pictures} in {out}, the first ones on {out / SHEET_NAME}")


def sampling_of(values: Namespace) -> dict[str, Any]:
    """The sampling settings that were given, by field; None where they were not."""
    return {field.name: getattr(values, field.name) for field in fields(SamplingSettings)}


def evaluate_reconstruction(values: Namespace) -> None:
    """Run ``wvq evaluate reconstruction``."""
    quiet_libraries()
    from wvq.eval.run import run_reconstruction_evaluation

    recipe = recipe_of(values, ReconstructionEvaluation)
    print_result(run_reconstruction_evaluation(recipe), recipe.out)


def evaluate_generation(values: Namespace) -> None:
    """Run ``wvq evaluate generation``."""
    quiet_libraries()
    from wvq.eval.run import run_generation_evaluation

    recipe = recipe_of(values, GenerationEvaluation, sampling=sampling_of(values))
    print_result(run_generation_evaluation(recipe), recipe.out)


def evaluate_compare(values: Namespace) -> None:
    """Run ``wvq evaluate compare``."""
    from wvq.eval.compare import compare_results

    print(compare_results(values.results))


def import_model(values: Namespace) -> None:
    """Run ``wvq import``."""
    if values.list:
        print(catalogue_text())
        return
    quiet_libraries()
    from wvq.pipelines.published.importing import import_published

    recipe = recipe_of(values, ImportRecipe)
    origin = import_published(recipe)
    for file in origin.files:
        print(f"  {file}")
    out, is_pipeline = shlex.quote(recipe.out), (Path(recipe.out) / INDEX_NAME).exists()
    following = f"wvq sample {out}" if is_pipeline else f"wvq export-codes --tokenizer {out} --data.path PICTURES"
    print(f"{'pipeline' if is_pipeline else 'tokenizer'} of {origin.project} in {recipe.out}; next: {following}")


def export_llamagen(values: Namespace) -> None:
    """Run ``wvq export llamagen``."""
    quiet_libraries()
    from wvq.pipelines.image_generation import ImageGenerationPipeline
    from wvq.pipelines.published.export import export_llamagen as export

    pipe = ImageGenerationPipeline.from_pretrained(values.pipeline)
    sizes = export(pipe, values.out, values.tokenizer_out)
    print(f"generator in {values.out}" + (f", tokenizer in {values.tokenizer_out}" if values.tokenizer_out else ""))
    print(f"arguments of LlamaGen's Transformer: {', '.join(f'{name}={value!r}' for name, value in sizes.items())}")


def study_atomic(values: Namespace) -> None:
    """Run ``wvq study atomic``."""
    from wvq.eval.atomic.study import run_study, study_table

    recipe = recipe_of(values, AtomicRecipe)
    print(study_table(run_study(recipe)))
    print(f"results, table.md and plots in {recipe.out}")


def info(values: Namespace) -> None:
    """Run ``wvq info``."""
    from wvq.app.describe import describe

    print(describe(values.path))


def print_figures(figures: dict[str, Any]) -> None:
    """Print a line for each number or text."""
    scalars = {name: value for name, value in figures.items() if isinstance(value, int | float | str)}
    width = max(map(len, scalars), default=0) + 2
    for name, value in scalars.items():
        print(f"  {name:<{width}}{f'{value:,.4f}' if isinstance(value, float) else value}")


def print_result(result: dict, out: str | None) -> None:
    """Print an evaluation's figures, floor, warnings and files; the main process alone prints."""
    from wvq.distributed import is_main_process

    if not is_main_process():
        return
    print(f"{result['num_images']:,} pictures against {result['num_reference']:,}:")
    print_figures(result["metrics"])
    for name, value in result["settings"].get("published", {}).items():
        print(f"published under {result['settings']['preset']}: {name} {value}")
    if result["floor"]:
        print(f"floor, real against real, N = {result['num_floor']:,} a side (as the figures at_floor_n):")
        print_figures(result["floor"])
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    if out is not None:
        from wvq.eval.report.summary import summary_files

        text, page = summary_files(out)
        print(f"result in {out}, {text} and, with pictures, {page}")
