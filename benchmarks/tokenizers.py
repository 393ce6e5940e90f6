"""The comparison of quantizers on photographs: one network, one schedule, one data set, equal terms.

    python -m benchmarks.tokenizers --data cifar10.parquet --out runs/comparison [--sets main seeds published ablation]

A cell is one training run of :func:`wvq.tokenizer.train.train_tokenizer`, measured at its last step on the held-out
pictures. Several processes may work on one folder: each takes the next cell that is free, and a cell that was cut
short goes on from its last checkpoint. The figures of all cells are joined into ``results.json``.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import initialization as init

from benchmarks.cells import goes_on, join, run_cells
from wvq.data.dataset import ImageSplits, load_images
from wvq.errors import DataError
from wvq.eval.features.networks import load_feature_network
from wvq.eval.reconstruction import evaluate_reconstruction
from wvq.files.atomic import read_json, write_json
from wvq.settings.parser import load_recipe
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers.aligned import SlicedWassersteinQuantizer
from wvq.tokenizer.quantizers.registry import QUANTIZERS
from wvq.tokenizer.quantizers.statistics import CodeStatistics
from wvq.tokenizer.quantizers.vanilla import VectorQuantizer
from wvq.tokenizer.recipes import TokenizerRecipe
from wvq.tokenizer.train import train_tokenizer

RECIPE = Path(__file__).with_suffix(".yaml")
CODEBOOK_RATE = 0.02
EQUAL_BETA = 0.1
SIZES = (16_384, 8_192, 1_024)
# Levels whose product is K. Eight dims would leave 2 or 3 levels each, so the dims are fewer, as published.
LEVELS = {1_024: [8, 8, 4, 4], 8_192: [8, 8, 8, 4, 4], 16_384: [8, 8, 8, 8, 4], 65_536: [8, 8, 8, 8, 4, 4]}


class NarrowStart(VectorQuantizer):
    """Ablation: the vanilla codebook, started as the aligned ones are."""

    def reset_codebook(self) -> None:
        init.normal_(self.codebook, 0.0, 0.01)


class UniformStart(SlicedWassersteinQuantizer):
    """Ablation: the sliced alignment, started as the vanilla codebook is."""

    def reset_codebook(self) -> None:
        VectorQuantizer.reset_codebook(self)


ABLATIONS: dict[str, type[VectorQuantizer]] = {
    "vanilla_narrow_start": NarrowStart,
    "sliced_uniform_start": UniformStart,
}


@dataclass
class Cell:
    """One run: a name, and what differs from the shared recipe, by dotted field."""

    name: str
    quantizer: str
    num_codes: int
    seed: int = 0
    codebook_rate: float | None = CODEBOOK_RATE
    model: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)


def method_cells(num_codes: int, seed: int = 0, beta: float | None = EQUAL_BETA) -> list[Cell]:
    """The nine methods at one K; ``beta`` None takes each method's published commitment weight."""
    ending = f"{'' if beta else '-published'}-{num_codes}-seed{seed}"
    weight = {} if beta is None else {"commitment_weight": beta}
    cells = [Cell(f"vanilla_network_rate{ending}", "vanilla", num_codes, seed, None, weight)]
    for name in ("vanilla", "ema", "online", "linear", "wasserstein", "sliced", "affine"):
        cells.append(Cell(f"{name}{ending}", name, num_codes, seed, model=weight))
    levels = LEVELS[num_codes]
    fixed = {"levels": levels, "code_dim": len(levels)}
    return [*cells, Cell(f"fsq{ending}", "fsq", num_codes, seed, None, fixed)]


def ablation_cells(num_codes: int = 16_384) -> list[Cell]:
    """What the gain is made of: start, codebook rate, beta, alignment, and what full utilization can be spent on."""

    def cell(name: str, quantizer: str, rate: float | None = CODEBOOK_RATE, size: int = num_codes, **model) -> Cell:
        train, seed = model.pop("train", {}), model.pop("seed", 0)
        model = {"commitment_weight": EQUAL_BETA} | model
        return Cell(f"ablation-{name}-{size}", quantizer, size, seed, rate, model, train)

    longer = {"images": 345_600}
    settling, fading = {"codebook_schedule": "network"}, {"final_alignment": 0.0}
    return [
        cell("sliced_settling", "sliced", train=settling),
        cell("linear_settling", "linear", train=settling),
        cell("vanilla_settling", "vanilla", train=settling),
        cell("wasserstein_settling", "wasserstein", train=settling),
        cell("sliced_fading", "sliced", train=fading),
        cell("sliced_settling_fading", "sliced", train=settling | fading),
        cell("affine_settling", "affine", train=settling),
        cell("vanilla_narrow_start", "vanilla_narrow_start"),
        cell("sliced_uniform_start", "sliced_uniform_start"),
        cell("sliced_network_rate", "sliced", None),
        cell("sliced_rate_005", "sliced", 0.005),
        cell("sliced_beta_1", "sliced", commitment_weight=1.0),
        cell("sliced_beta_025", "sliced", commitment_weight=0.25),
        cell("sliced_gamma_005", "sliced", alignment_weight=0.05),
        cell("sliced_tau_112", "sliced", target_scale=1.12),
        cell("sliced_rotation", "sliced", gradient_estimator="rotation"),
        cell("sliced_larger", "sliced", size=65_536),
        cell("linear_larger", "linear", size=65_536),
        cell("ema_larger", "ema", size=65_536),
        cell("vanilla_larger", "vanilla", size=65_536),
        cell("sliced_longer", "sliced", train=longer),
        cell("affine_longer", "affine", train=longer),
        cell("wasserstein_longer", "wasserstein", train=longer),
        cell("ema_longer", "ema", train=longer),
        cell("linear_longer", "linear", train=longer),
        cell("vanilla_longer", "vanilla", train=longer),
        cell("affine_longer_seed1", "affine", train=longer, seed=1),
        cell("linear_longer_seed1", "linear", train=longer, seed=1),
    ]


_UNPUBLISHED = ("wasserstein", "sliced", "affine", "fsq")  # equal beta is the published one, or there is none
SETS = {
    "main": [cell for size in SIZES for cell in method_cells(size)],
    "seeds": method_cells(16_384, seed=1),
    "published": [c for size in SIZES for c in method_cells(size, beta=None) if c.quantizer not in _UNPUBLISHED],
    "ablation": ablation_cells(),
}


def cell_recipe(cell: Cell, data: str, out: Path) -> TokenizerRecipe:
    """The shared recipe with what the cell changes."""
    overrides = {"data.path": data, "out": str(out), "train.seed": cell.seed}
    overrides["train.codebook_learning_rate"] = cell.codebook_rate
    overrides |= {f"train.{name}": value for name, value in cell.train.items()}
    model = {"quantizer": cell.quantizer, "num_codes": cell.num_codes, **cell.model}
    overrides |= {f"model.{name}": value for name, value in model.items()}
    return load_recipe(TokenizerRecipe, RECIPE, overrides)


def run_cell(cell: Cell, data: str, out: Path, feature_network) -> dict:
    """Train one cell and measure it on the held-out pictures."""
    recipe = cell_recipe(cell, data, out)
    run = train_tokenizer(recipe, resume=goes_on(out))
    tokenizer = WassersteinVQModel.from_pretrained(out)
    images = load_images(recipe.data)
    result = evaluate_reconstruction(tokenizer, images.validation, feature_network, progress=False)
    counts = {name: run[name] for name in ("images", "images_per_second", "skipped_steps", "parameters")}
    settings = {"quantizer": cell.quantizer, "num_codes": cell.num_codes, "seed": cell.seed, "model": recipe.model}
    settings |= {"codebook_learning_rate": cell.codebook_rate, **{f"train.{k}": v for k, v in cell.train.items()}}
    return {"name": cell.name, "cell": settings, "run": counts, **result, "training": code_use(tokenizer, images)}


def code_use(tokenizer: WassersteinVQModel, images: ImageSplits) -> dict:
    """U and C over all training pictures: nine times the tokens of the held-out ones."""
    statistics = CodeStatistics(tokenizer.config.num_codes)
    for batch in DataLoader(images.train, 256):
        with torch.no_grad():
            output = tokenizer.encode(batch["pixel_values"])
        statistics.update(output.codes, (output.features - output.quantized).square().sum(1).mean())
    figures = statistics.compute()
    return {name: figures[name] for name in ("utilization", "perplexity", "num_tokens", "quantization_error")}


def complete(cells: list[Cell], data: str, folder: Path) -> None:
    """Add the use of codes in training to the cells that were measured without it."""
    recipe = load_recipe(TokenizerRecipe, RECIPE, {"data.path": data})
    images = load_images(recipe.data)
    for cell in cells:
        file = folder / f"{cell.name}.json"
        if file.exists() and "training" not in (result := read_json(file, DataError, f"{file} is missing")):
            tokenizer = WassersteinVQModel.from_pretrained(folder / cell.name)
            write_json(file, result | {"training": code_use(tokenizer, images)})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="parquet file or folder of pictures with classes")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--only", nargs="+", help="names of cells")
    parser.add_argument("--complete", action="store_true", help="only add what finished cells lack")
    arguments = parser.parse_args()
    QUANTIZERS.update(ABLATIONS)  # here, so that importing this module leaves the registry unchanged
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    cells = [cell for name in arguments.sets for cell in SETS[name]]
    cells = [cell for cell in cells if not arguments.only or cell.name in arguments.only]
    folder = arguments.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.complete:
        complete(cells, arguments.data, folder)
        return join(arguments.out)
    network = load_feature_network("efficientnet_lite0")
    by_name = {cell.name: cell for cell in cells}
    run_cells(by_name, arguments.out, lambda name, out: run_cell(by_name[name], arguments.data, out, network))


if __name__ == "__main__":
    main()
