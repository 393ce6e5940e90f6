"""What the layout of codes does to generation: one size of networks and one budget over every layout and alignment.

    python -m benchmarks.layouts --data cifar10.parquet --out runs/layouts
    python -m benchmarks.layouts --data cifar10.parquet --out runs/layouts --stage speed

A cell is a generator over the codes of one tokenizer. The tokenizers are those of the comparison of quantizers
(benchmarks/tokenizers.py) in network, schedule and pictures, with half its budget, and the generators those of
layouts.yaml: they differ in layout and alignment. Several processes may share a folder, and one that was stopped goes
on with the same command. The stage ``tokenizers`` ends before the generators;
``speed`` times the samplers of the first cells against each other.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import tokenizers
from benchmarks.cells import goes_on, run_cells
from benchmarks.generation import Measure, code_folder, data_config, guided, sheet, tokenizer_folder
from benchmarks.tokenizers import EQUAL_BETA
from wvq.data.dataset import load_images
from wvq.errors import DataError
from wvq.eval.features.networks import load_feature_network
from wvq.files.atomic import read_json, write_json
from wvq.generator.base.sampling_settings import SamplingOptions
from wvq.generator.recipes import GeneratorRecipe
from wvq.hardware import processor_name
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.parser import load_recipe

RECIPE = Path(__file__).with_suffix(".yaml")
TOKENIZERS: dict[str, dict[str, Any]] = {
    "grid": {"num_codes": 8_192},
    "multi_scale": {"num_codes": 8_192, "scales": [1, 2, 3, 4, 6, 8]},
    "product": {"num_codes": 1_024, "num_groups": 2},
}
ALIGNMENTS = [("sliced", 0), ("vanilla", 0), ("wasserstein", 0), ("sliced", 1)]  # with their seeds, in turn
TOKENIZER_FIGURES = ("psnr_rgb", "utilization", "perplexity", "quantization_error")
TIMED_GUIDANCE = 1.5


@dataclass(frozen=True)
class Generator:
    """How the codes of a layout are modelled and drawn.

    Args:
        tokenizer: the layout of the codes.
        changes: fields of the recipe that differ from benchmarks/layouts.yaml, by dotted name.
        passes: settings of ``passes`` that samples are drawn with; 0 is one code a pass, or one scale.
    """

    tokenizer: str
    changes: dict[str, Any] = field(default_factory=dict)
    passes: tuple[int, ...] = (0,)


VECTORS = {"model.code_dim": 8}  # embeddings and logits also see the code vectors
ANY_ORDER: dict[str, Any] = {"objective.random_order": 1.0, "objective.order_anneal": None}
GENERATORS = {
    "grid": Generator("grid", VECTORS),
    "multi_scale": Generator("multi_scale"),  # which always sees them
    "product": Generator("product", VECTORS),
    "any_order": Generator("grid", VECTORS | ANY_ORDER, (0, 8, 16, 32)),
}


@dataclass(frozen=True)
class Cell:
    """One generator, and the alignment and seed of its tokenizer."""

    layout: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the cell's figures and folder."""
        return f"{self.layout}-{self.method}-seed{self.seed}"

    @property
    def generator(self) -> Generator:
        """How its codes are modelled and drawn."""
        return GENERATORS[self.layout]

    @property
    def tokenizer_name(self) -> str:
        """Name of its tokenizer's folder."""
        return f"{self.generator.tokenizer}-{self.method}-seed{self.seed}"


CELLS = {cell.name: cell for method, seed in ALIGNMENTS for cell in (Cell(name, method, seed) for name in GENERATORS)}


@dataclass(frozen=True)
class Budget:
    """What each cell may take.

    Args:
        tokenizer: fields of the tokenizer's loop that differ from benchmarks/tokenizers.yaml.
        generator: fields of the generator's recipe that differ from benchmarks/layouts.yaml, by dotted name.
        num_samples: pictures on each side of a comparison.
    """

    tokenizer: dict[str, Any] = field(default_factory=lambda: {"images": 57_600})  # 900 steps, 3.2 epochs
    generator: dict[str, Any] = field(default_factory=dict)
    num_samples: int = 2_000


@dataclass
class Study:
    """Cells over one data set in one folder.

    Args:
        data: parquet file or folder of pictures with classes.
        out: folder of the study.
        budget: what each cell may take.
    """

    data: str
    out: Path
    budget: Budget = field(default_factory=Budget)

    def tokenizer(self, cell: Cell) -> Path:
        """The cell's tokenizer, trained where it is not there; generators of one layout of codes share it."""
        model: dict[str, Any] = {"commitment_weight": EQUAL_BETA} | TOKENIZERS[cell.generator.tokenizer]
        num_codes, train = model.pop("num_codes"), self.budget.tokenizer
        trained = tokenizers.Cell(cell.tokenizer_name, cell.method, num_codes, cell.seed, model=model, train=train)
        return tokenizer_folder(trained, self.data, self.out / "tokenizers")

    def run(self, cell: Cell, out: Path, measure: Measure) -> dict:
        """Train the generator of a cell and measure it."""
        source = self.tokenizer(cell)
        codes = code_folder(source, self.data)
        changes: dict[str, Any] = {
            "out": str(out),
            "codes": str(codes),
            "tokenizer": str(source),
            "train.seed": cell.seed,
        }
        recipe = load_recipe(GeneratorRecipe, RECIPE, changes | cell.generator.changes | self.budget.generator)
        run, pipe = train_pipeline(recipe, resume=goes_on(out / "generator"))
        sheet(pipe).save(out / "sheet.png")
        length = pipe.generator.config.sequence_length
        run["bits_per_image"] = run["loss"] * length / math.log(2)
        if "loss_random_order" in run:
            run["bits_per_image_in_random_order"] = run["loss_random_order"] * length / math.log(2)
        trained = read_json(source / "result.json", DataError, f"{source} holds no result.json")
        return {
            "name": cell.name,
            "cell": {"layout": cell.layout, "method": cell.method, "seed": cell.seed},
            "tokenizer": {"codes": length, **{name: trained[name] for name in TOKENIZER_FIGURES}},
            "run": run,
            "num_samples": measure.num_samples,
            "floor": measure.floor,
            "decoded": measure(measure.decoded(pipe.tokenizer)),
            "drawn": [
                {"passes": passes_of(pipe, options), "guidance": guided(pipe, measure, **options)}
                for options in samplings(cell)
            ],
        }

    def speed(self, rounds: int = 5, batches: tuple[int, ...] = (1, 16)) -> list[dict]:
        """Seconds a picture of every sampler over the first alignment, and as a ratio to the first sampler.

        Of the cells that are finished, in the order of the layouts.
        """
        method, seed = ALIGNMENTS[0]
        cells = [Cell(layout, method, seed) for layout in GENERATORS]
        cells = [cell for cell in cells if (self.out / "cells" / f"{cell.name}.json").exists()]
        pipes = [ImageGenerationPipeline.from_pretrained(self.out / "cells" / cell.name) for cell in cells]
        cases = [(c.layout, pipe, options) for c, pipe in zip(cells, pipes, strict=True) for options in samplings(c)]
        rows = []
        for batch in batches:
            times = in_turn([sampler(pipe, batch, options) for _, pipe, options in cases], rounds)
            for (layout, pipe, options), own in zip(cases, times, strict=True):
                row = {"layout": layout, "passes": passes_of(pipe, options), "batch": batch}
                row["seconds_per_image"] = statistics.median(own) / batch
                row["first_to_this"] = statistics.median(a / b for a, b in zip(times[0], own, strict=True))
                rows.append(row)
        return rows


def samplings(cell: Cell) -> list[SamplingOptions]:
    """The settings that the pictures of a cell are drawn with, but for guidance."""
    return [{"passes": number} for number in cell.generator.passes]


def sampler(pipe: ImageGenerationPipeline, batch: int, options: SamplingOptions) -> Callable[[], object]:
    """Draws a batch of pictures under guidance."""
    settings: SamplingOptions = {**options, "guidance_scale": TIMED_GUIDANCE}
    return lambda: pipe(0, num_images=batch, batch_size=batch, seed=0, output_type="pt", **settings)


def in_turn(cases: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each case in each round; every round runs each once, after one that does not count."""
    times: list[list[float]] = [[] for _ in cases]
    for number in range(rounds + 1):
        for case, own in zip(cases, times, strict=True):
            start = time.perf_counter()
            case()
            if number:
                own.append(time.perf_counter() - start)
    return times


def passes_of(pipe: ImageGenerationPipeline, options: SamplingOptions) -> int:
    """Passes through the body of the generator that a picture takes, counted."""
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1

    hook = pipe.generator.get_submodule("blocks.0").register_forward_hook(note)
    sampler(pipe, 1, options)()
    hook.remove()
    return count


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="parquet file or folder of pictures with classes")
    parser.add_argument("--out", type=Path, default=Path("runs/layouts"))
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS), help="names of cells")
    parser.add_argument("--stage", choices=["tokenizers", "generators", "speed"], default="generators")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    study = Study(arguments.data, arguments.out)
    if arguments.stage == "tokenizers":
        for name in arguments.only:
            study.tokenizer(CELLS[name])
    elif arguments.stage == "speed":
        write_json(arguments.out / "speed.json", {"processor": processor_name(), "rows": study.speed()})
    else:
        images = load_images(data_config(arguments.data)).train
        measure = Measure(images, load_feature_network("efficientnet_lite0"), study.budget.num_samples)
        run_cells(arguments.only, arguments.out, lambda name, out: study.run(CELLS[name], out, measure))


if __name__ == "__main__":
    main()
