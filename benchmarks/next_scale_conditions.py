"""How a next-scale generator takes its condition: adaptive norms against prefix tokens, for classes and for captions.

    python -m benchmarks.next_scale_conditions --data cifar10.parquet --tokenizer multi_scale --out runs/conditions

The cells share the multi-scale tokenizer, its codes, the budget of next_scale_conditions.yaml and, within some percent,
the number of parameters: what makes shifts, scales and gates of a condition weighs half as much as the rest of a layer,
so that six adaptive layers are as large as nine with prefix tokens, which cost more for each code. A caption is the
name of a picture's class in one of eight sentences. What was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.cells import run_cells
from benchmarks.generation import GUIDANCE, Measure, data_config
from wvq.data.dataset import ImageDataset, load_images
from wvq.eval.features.networks import load_feature_network
from wvq.eval.samples.conditions import Conditions
from wvq.eval.samples.drawing import Samples
from wvq.files.atomic import whole_file
from wvq.files.names import RECIPE_NAME
from wvq.generator.recipes import GeneratorRecipe
from wvq.pipelines.assemble import train_pipeline
from wvq.settings.parser import load_recipe
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.recipes import ExportRecipe

RECIPE = Path(__file__).with_suffix(".yaml")
NUM_SAMPLES, AT_ONCE = 1_000, 250
SENTENCES = (
    "a photo of a {}",
    "a small photo of the {}",
    "a blurry picture of a {}",
    "one {}, seen from the side",
    "a close-up of a {}",
    "a {} in the middle of the picture",
    "this is a {}",
    "{}",
)
TEXT = {"condition.classes": False, "condition.text": True}
ADAPTIVE = {"model.conditioning": "adaptive", "model.num_layers": 6}
PREFIX = {"model.conditioning": "prefix", "model.num_layers": 9}
CELLS: dict[str, dict[str, Any]] = {
    "class-adaptive": ADAPTIVE,
    "class-prefix": PREFIX,
    "text-adaptive": ADAPTIVE | TEXT,
    "text-prefix": PREFIX | TEXT,
}


def captioned(data: str, out: Path) -> Path:
    """A copy of the parquet file in which each picture has a caption; made where it is not there."""
    file = out / "captioned.parquet"
    if not file.exists():
        names, table = load_images(data_config(data)).train.class_names, pq.read_table(data)
        captions = [caption(names[label], row) for row, label in enumerate(table["label"].to_pylist())]
        with whole_file(file) as partial:
            pq.write_table(table.append_column("caption", pa.array(captions)), partial)
    return file


def caption(name: str, number: int) -> str:
    """The caption of a picture of a class."""
    return SENTENCES[number % len(SENTENCES)].format(name)


def code_cache(data: Path, tokenizer: str, out: Path) -> Path:
    """The codes of the pictures in two versions, with classes and captions; exported where they are not there."""
    codes = out / "codes"
    if not codes.exists():
        export_codes(ExportRecipe(str(codes), tokenizer, data_config(str(data)), num_crops=2, batch_size=64))
    return codes


def conditions(images: ImageDataset, text: bool) -> Conditions:
    """As many samples of each class, by the class itself or by captions."""
    ids = [number % len(images.class_names) for number in range(NUM_SAMPLES)]
    if not text:
        return Conditions([*ids], ids, None, None)
    captions = [caption(images.class_names[i], number // len(images.class_names)) for number, i in enumerate(ids)]
    return Conditions(None, None, None, captions)


def run_cell(changes: dict[str, Any], tokenizer: str, codes: Path, out: Path, measure: Measure) -> dict[str, Any]:
    """Train one generator and measure its samples."""
    paths = {"out": str(out), "codes": str(codes), "tokenizer": tokenizer}
    recipe = load_recipe(GeneratorRecipe, RECIPE, paths | changes)
    run, pipe = train_pipeline(recipe, resume=(out / "generator" / RECIPE_NAME).exists())
    drawn = {}
    for scale in GUIDANCE:
        settings = pipe.sampling.updated(guidance_scale=scale)
        samples = Samples(pipe, NUM_SAMPLES, conditions(measure.dataset, recipe.condition.text), settings)
        starts = range(0, NUM_SAMPLES, AT_ONCE)
        drawn[f"{scale:g}"] = measure(samples.draw(range(start, start + AT_ONCE)).images for start in starts)
    figures = ("loss", "parameters", "images")
    return {
        "name": out.name,
        "cell": changes,
        "run": {name: run[name] for name in figures},
        "num_samples": NUM_SAMPLES,
        "floor": measure.floor,
        "guidance": drawn,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="parquet file of pictures with classes")
    parser.add_argument("--tokenizer", required=True, help="folder of a multi-scale tokenizer")
    parser.add_argument("--out", type=Path, default=Path("runs/conditions"))
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS), help="names of cells")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    data = captioned(arguments.data, arguments.out)
    codes = code_cache(data, arguments.tokenizer, arguments.out)
    measure = Measure(
        load_images(data_config(str(data))).train, load_feature_network("efficientnet_lite0"), NUM_SAMPLES
    )
    run_cells(
        arguments.only,
        arguments.out,
        lambda name, out: run_cell(CELLS[name], arguments.tokenizer, codes, out, measure),
    )


if __name__ == "__main__":
    main()
