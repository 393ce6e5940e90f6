"""Multi-scale tokenizers with the values that the authors of the Wasserstein quantizer train theirs with, compared with
the defaults: one network, one schedule, one data set, one seed.

    python -m benchmarks.multiscale --data cifar10.parquet --out runs/multiscale
    python -m benchmarks.multiscale --table docs/results/multiscale.json

Theirs (arXiv 2506.15078; ten scales, 680 codes): the Gaussian alignment to the residuals of all scales, over a window
of 87,040, narrowed to half their spread; scale losses weighted 1 1 1 2 2 2 3 3 5 5; rates of .005 for the codebook and
of .001 for the convolutions. A cell changes one of these in the defaults, or all. Network and schedule are those of the
comparison of quantizers (benchmarks/tokenizers.yaml); a cell is measured at its last step on the held-out pictures.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.cells import goes_on, run_cells
from benchmarks.tokenizers import Cell, cell_recipe
from wvq.errors import DataError
from wvq.eval.report.markdown import markdown_table
from wvq.files.atomic import read_json
from wvq.tokenizer.train import train_tokenizer

IMAGES = 30_720  # 480 steps
NUM_CODES = 8_192
SCALES = [1, 2, 3, 4, 6, 8]
THEIRS = "wasserstein"
METHODS = ("sliced", THEIRS)  # the former is the default


class Change(NamedTuple):
    """What a cell changes in the defaults: a label, fields of the model and of the training loop."""

    label: str
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}


CHANGES = {
    "target_scale": Change("target scale .5", {"target_scale": 0.5}),
    # Of their ten weights, those at the same places between the first scale and the last.
    "scale_weights": Change("scale weights 1 1 2 2 3 5", {"scale_weights": [1, 1, 2, 2, 3, 5]}),
    "codebook_rate": Change("codebook rate .005", train={"codebook_learning_rate": 0.005}),
    "scale_conv_rate": Change("convolution rate .001", train={"scale_conv_learning_rate": 0.001}),
    "window": Change("window 87,040", {"window_size": 87_040}),
}


def changes(method: str) -> dict[str, Change]:
    """The cells of a method: defaults and all changes that mean something to it; of theirs also each change alone."""
    meant = {name: change for name, change in CHANGES.items() if method == THEIRS or name != "window"}
    model = {field: value for change in meant.values() for field, value in change.model.items()}
    train = {field: value for change in meant.values() for field, value in change.train.items()}
    alone = meant if method == THEIRS else {}
    return {"defaults": Change("the defaults"), "all": Change("all", model, train), **alone}


def cells(images: int) -> dict[str, Cell]:
    """The cells by name, in the order of their runs."""
    made = {}
    for method in METHODS:
        for name, change in changes(method).items():
            model, train = {"scales": SCALES} | change.model, {"images": images, "evaluate_every": 0} | change.train
            made[f"{method}-{name}"] = Cell(f"{method}-{name}", method, NUM_CODES, model=model, train=train)
    return made


def run_cell(cell: Cell, data: str, out: Path) -> dict[str, Any]:
    """Train one cell; its settings, and the figures of its last step on the held-out pictures."""
    recipe = cell_recipe(cell, data, out)
    result = train_tokenizer(recipe, resume=goes_on(out))
    rates = {name: getattr(recipe.train, f"{name}_learning_rate") for name in ("codebook", "scale_conv")}
    settings = {"model": recipe.model, "learning_rates": rates, "seed": recipe.train.seed}
    return {"name": cell.name, "cell": settings, **{key: result[key] for key in result if key != "data"}}


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table, in the order of the cells."""
    by_name = {result["name"]: result for result in results}
    head = ["alignment", "change", "PSNR RGB", "PSNR Y", "E", "U", "C", f"U at sides {', '.join(map(str, SCALES))}"]
    rows = []
    for method in METHODS:
        for name, change in changes(method).items():
            cell = by_name[f"{method}-{name}"]
            row = [method, change.label, f"{cell['psnr_rgb']:.2f}", f"{cell['psnr_y']:.2f}"]
            row += [f"{cell['quantization_error']:.4f}", f"{cell['utilization']:.1%}", f"{cell['perplexity']:,.0f}"]
            rows.append([*row, ", ".join(f"{share:.1%}" for share in cell["utilization_per_scale"])])
    return markdown_table(head, rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--data", help="parquet file or folder of pictures with classes, to train on")
    work.add_argument("--table", type=Path, help="results to write as a table")
    parser.add_argument("--out", type=Path, default=Path("runs/multiscale"))
    parser.add_argument("--images", type=int, default=IMAGES, help="pictures that each cell trains on")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_json(arguments.table, DataError, f"{arguments.table} does not exist")["cells"]))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    by_name = cells(arguments.images)
    run_cells(by_name, arguments.out, lambda name, out: run_cell(by_name[name], arguments.data, out))


if __name__ == "__main__":
    main()
