"""Each layout of codes on drawings: the quick start's networks for the same time, and their sheets side by side.

    python -m benchmarks.drawings --out runs/drawings
    python -m benchmarks.drawings --data drawings/ --label style --size 64 --minutes 12 --out runs/drawings_64

A cell is the quick start over one layout, by the recipes of openmoji_32, at 64 pixels with twice the patch, so that the
grid is 8 x 8 in each. Time is processor time on one thread: before a stage is trained its pace is taken over some
steps, and the stage then trains on the pictures that fit into its share of the minutes. Figures are of the last step;
samples are drawn under the classes and captions of training pictures at one setting for all. A cell that is finished is
kept, one that was cut short starts again; ``sheet.png`` has all layouts, a condition a row.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.cells import run_cells
from wvq.app.quickstart import TOKENIZER_SHARE, text_condition
from wvq.data.dataset import ImageSplits, load_images
from wvq.data.sheets import labelled_rows
from wvq.errors import DataError
from wvq.eval.features.networks import load_feature_network
from wvq.eval.generation import evaluate_generation
from wvq.files.atomic import read_json
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.recipes import GeneratorRecipe
from wvq.hardware import processor_name
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.parser import load_recipe
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.recipes import ExportRecipe, TokenizerRecipe
from wvq.tokenizer.train import train_tokenizer


@dataclass(frozen=True)
class Layout:
    """How pictures are coded and drawn.

    Attributes:
        tokenizer, generator: recipes of openmoji_32.
        changes: fields of the generator's recipe that differ, by dotted name.
        passes: sampling setting.
    """

    tokenizer: str = "tokenizer"
    generator: str = "generator"
    changes: dict[str, Any] = field(default_factory=dict)
    passes: int = 0


LAYOUTS = {
    "grid": Layout(),
    "next_scale": Layout("tokenizer_multiscale", "generator_next_scale"),
    "next_scale_prefix": Layout("tokenizer_multiscale", "generator_next_scale", {"model.conditioning": "prefix"}),
    "product": Layout("tokenizer_product", "generator_product"),
    "any_order": Layout(generator="generator_any_order", passes=16),
}
SETTINGS = SamplingSettings(guidance_scale=1.3, temperature=0.6, top_k=100)  # the quick start's
PACE_PICTURES = 960
ROWS, COLUMNS = 12, 4
OPENMOJI_ROWS = ("red apple", "red heart", "thumbs up", "banana", "red circle", "flag: Japan", "flag: France")


def tokenizer_recipe(name: str, data: str, label: str | None, size: int, out: Path) -> TokenizerRecipe:
    """A tokenizer of the quick start, over other pictures if they are given."""
    recipe = load_recipe(TokenizerRecipe, f"openmoji_32/{name}", {"out": str(out)})
    if data != "openmoji":
        recipe.data = replace(recipe.data, path=data, classes=None, label_column=label, flip=False, seed=0)
    recipe.data.image_size = size
    recipe.model["patch_size"] = size // 16
    return recipe


def generator_recipe(layout: Layout, out: Path, codes: Path, tokenizer: Path) -> GeneratorRecipe:
    """The quick start's generator of a layout."""
    given = {"out": str(out), "codes": str(codes), "tokenizer": str(tokenizer), **layout.changes}
    recipe = load_recipe(GeneratorRecipe, f"openmoji_32/{layout.generator}", given)
    recipe.condition = text_condition(recipe.condition, True)
    return recipe


def pictures_in(seconds: float, train: Any, recipe: Any) -> int:
    """Pictures that a stage trains on in some seconds of processor time, from its pace over a short run."""
    with tempfile.TemporaryDirectory() as folder:
        short = replace(recipe, out=str(Path(folder) / "run"), train=replace(recipe.train, evaluate_every=10**9))
        paces = []
        for number in (PACE_PICTURES // 4, PACE_PICTURES):  # what both need, the start and the end, falls out
            short.out = str(Path(folder) / str(number))
            short.train.images = number
            started = time.process_time()
            train(short)
            paces.append(time.process_time() - started)
    step = (paces[1] - paces[0]) / (PACE_PICTURES - PACE_PICTURES // 4)
    batch = recipe.train.batch_size
    return max(batch, int(seconds / step) // batch * batch)


def tokenizer_of(name: str, arguments: argparse.Namespace, images: ImageSplits) -> Path:
    """The tokenizer of a recipe, trained and its codes exported first where they are not there."""
    out, codes = (arguments.out / kind / name for kind in ("tokenizers", "codes"))
    recipe = tokenizer_recipe(name, arguments.data, arguments.label, arguments.size, out)
    if not (out / "result.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        seconds = 60 * arguments.minutes * TOKENIZER_SHARE
        recipe.train.images = pictures_in(seconds, lambda short: train_tokenizer(short, images=images), recipe)
        train_tokenizer(recipe, images=images)
    if not codes.exists():
        data = replace(recipe.data, crop="center")
        flipped = arguments.data == "openmoji"
        export = ExportRecipe(str(codes), str(out), replace(data, flip=flipped), num_crops=2 if flipped else 1)
        export_codes(export, images.under(export.data))
    return out


def run_cell(name: str, out: Path, arguments: argparse.Namespace, images: ImageSplits) -> dict[str, Any]:
    """Train one layout and measure it; its pictures lie in ``out`` for the sheet."""
    layout = LAYOUTS[name]
    shutil.rmtree(out, ignore_errors=True)
    tokenizer = tokenizer_of(layout.tokenizer, arguments, images)
    recipe = generator_recipe(layout, out, arguments.out / "codes" / tokenizer.name, tokenizer)
    seconds = 60 * arguments.minutes * (1 - TOKENIZER_SHARE)
    recipe.train.images = pictures_in(seconds, train_pipeline, recipe)
    recipe.train.evaluate_every = recipe.train.images // 5
    run, pipe = train_pipeline(recipe)
    settings = SETTINGS.updated(passes=layout.passes)
    count = min(arguments.samples, len(images.train) // 2)
    evaluation = evaluate_generation(
        pipe,
        images.train,
        count,
        "reference",
        "reference" if pipe.generator.config.text_dim else None,
        feature_network=load_feature_network("efficientnet_lite0"),
        **vars(settings),
    )
    trained = read_json(tokenizer / "result.json", DataError, f"{tokenizer} holds no result.json")
    return {
        "name": name,
        "tokenizer": {figure: trained[figure] for figure in ("psnr_rgb", "utilization", "perplexity", "images")},
        "generator": {figure: run[figure] for figure in ("loss", "images", "parameters")},
        "bits_per_image": run["loss"] * pipe.generator.config.sequence_length / math.log(2),
        "metrics": evaluation["metrics"],
        "floor": evaluation.get("floor"),
        "num_samples": count,
        "seconds_per_image": seconds_per_image(pipe, settings),
        "sampling": settings.identity(),
        "minutes": arguments.minutes,
        "processor": processor_name(),
    }


def seconds_per_image(pipe: ImageGenerationPipeline, settings: SamplingSettings, count: int = 16) -> float:
    """Median seconds a picture, of five batches."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        pipe(num_images=count, seed=0, **vars(settings))
        times.append((time.perf_counter() - started) / count)
    return statistics.median(times)


def write_sheet(arguments: argparse.Namespace, images: ImageSplits) -> None:
    """``sheet.png``: a row a condition, with four pictures of each layout that is there, a column apart."""
    layouts = [layout for layout in LAYOUTS if (arguments.out / "cells" / f"{layout}.json").exists()]
    texts = images.validation.captions or []
    step = max(1, len(texts) // ROWS)
    rows = list(OPENMOJI_ROWS) if arguments.data == "openmoji" else []
    prompts = rows + [text for text in texts[::step] if text not in rows][: ROWS - len(rows)]
    names = [images.class_names[i % len(images.class_names)] for i in range(len(prompts))]
    pictures: list[list[Image.Image]] = [[] for _ in prompts]
    for layout in layouts:
        pipe = ImageGenerationPipeline.from_pretrained(arguments.out / "cells" / layout)
        settings = SETTINGS.updated(passes=LAYOUTS[layout].passes)
        given: dict[str, Any] = {"prompt": prompts, "class_labels": None if arguments.data == "openmoji" else names}
        drawn = pipe(**given, num_images=COLUMNS * len(prompts), seed=0, batch_size=64, **vars(settings)).images
        gap = Image.new("RGB", (drawn[0].width // 4, drawn[0].height), "white")
        for row, start in enumerate(range(0, len(drawn), COLUMNS)):
            pictures[row] += [*drawn[start : start + COLUMNS], gap]
    labels = [
        text if arguments.data == "openmoji" else f"{name}: {text}" for name, text in zip(names, prompts, strict=True)
    ]
    scale = max(1, 64 // arguments.size)
    labelled_rows(list(zip(labels, pictures, strict=True)), scale, label_width=200).save(arguments.out / "sheet.png")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="openmoji", help="openmoji, or a folder or parquet file with captions")
    parser.add_argument("--label", help="column with the classes")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--minutes", type=float, default=8.0, help="processor time of training a layout")
    parser.add_argument("--samples", type=int, default=420)
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--out", type=Path, default=Path("runs/drawings"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = tokenizer_recipe("tokenizer", arguments.data, arguments.label, arguments.size, arguments.out).data
    images = load_images(data)
    run_cells(arguments.only, arguments.out, lambda name, out: run_cell(name, out, arguments, images))
    write_sheet(arguments, images)


if __name__ == "__main__":
    main()
