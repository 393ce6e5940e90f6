"""What the layout of codes does to generation: one size of networks, one budget, over every layout and alignment.

    python -m benchmarks.layouts --data cifar10.parquet --out runs/layouts [--stage tokenizers]

A cell is a generator over the codes of one tokenizer. The tokenizers are those of benchmarks/tokenizers.py in network,
schedule and pictures, with half the budget; they differ in layout and alignment. Several processes may share a folder;
one that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from benchmarks import tokenizers
from benchmarks.generation import tokenizer_folder
from benchmarks.tokenizers import EQUAL_BETA

LAYOUTS = {
    "grid": {"num_codes": 8_192},
    "multi_scale": {"num_codes": 8_192, "scales": [1, 2, 3, 4, 6, 8]},
    "product": {"num_codes": 1_024, "num_groups": 2},
}
ALIGNMENTS = [("sliced", 0), ("vanilla", 0), ("wasserstein", 0), ("sliced", 1)]  # and seeds, in the order of the runs
TOKENIZER_BUDGET = {"images": 57_600}  # 900 steps, 3.2 epochs of 18,000 pictures


def tokenizer_cell(layout: str, method: str, seed: int) -> tokenizers.Cell:
    """The tokenizer of a layout and alignment: all else is as in the comparison of quantizers."""
    model = {"commitment_weight": EQUAL_BETA} | LAYOUTS[layout]
    num_codes = model.pop("num_codes")
    name = f"{layout}-{method}-seed{seed}"
    return tokenizers.Cell(name, method, num_codes, seed, model=model, train=TOKENIZER_BUDGET)


TOKENIZERS = [tokenizer_cell(layout, method, seed) for method, seed in ALIGNMENTS for layout in LAYOUTS]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="parquet file or folder of pictures with classes")
    parser.add_argument("--out", type=Path, default=Path("runs/layouts"))
    parser.add_argument("--stage", choices=["tokenizers"], required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    for cell in TOKENIZERS:
        tokenizer_folder(cell, arguments.data, arguments.out / "tokenizers")


if __name__ == "__main__":
    main()
