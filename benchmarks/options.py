"""Speed of a training step with each quantizer, and with memory layout and compilation as options.

    python -m benchmarks.options [--rounds 9] [--out docs/results/training_options.json]

quantizers: the step of the comparison in benchmarks/tokenizers.py at K = 16,384, against that of ``vanilla``.
options: ``train.channels_last`` and ``train.compile`` against neither, on three networks. Cases take turns as in
benchmarks/training.py; rates are medians over rounds, ratios medians of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.tokenizers import cell_recipe, method_cells
from benchmarks.training import CODES, NETWORKS, trainer_step
from benchmarks.training import compare as rates_of
from wvq.files.atomic import write_json
from wvq.hardware import processor_name
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import LossConfig, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask

NUM_CODES = 16_384
OPTIONS = {"neither": {}, "channels_last": {"channels_last": True}, "compile": {"compile": True}}
OPTIONS |= {"both": {"channels_last": True, "compile": True}}


def training_step(model: dict, config: TokenizerTrainConfig, folder: Path) -> Callable[[], None]:
    """A step of the Trainer over noise of the model's size."""
    torch.manual_seed(0)
    network = WassersteinVQModel(WassersteinVQConfig(**model))
    task = TokenizerTask(ReconstructionLoss(LossConfig()), None, config)
    return trainer_step(task, network, model["image_size"], folder)


def compare(cases: dict[str, Callable[[], None]], pictures: int, base: str, rounds: int, steps: int) -> dict:
    """Pictures a second of each case, and its ratio to ``base``."""

    rates = rates_of(cases, rounds, steps, pictures)
    result = {}
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[base], strict=True))
        result[name] = {"images_per_second": round(statistics.median(values), 1), "ratio": round(ratio, 3)}
        print(f"  {name:<22}{result[name]['images_per_second']:>8}/s  {ratio:.3f}", flush=True)
    return result


def quantizers(folder: Path, rounds: int, steps: int) -> dict:
    """Rates of the step of the comparison with each quantizer."""
    cases, size = {}, 0
    for cell in method_cells(NUM_CODES):
        if cell.codebook_rate is None and cell.quantizer == "vanilla":
            continue  # the same step at another rate
        recipe = cell_recipe(cell, "none", folder)
        size = recipe.train.batch_size
        model = {**recipe.model, "image_size": recipe.data.image_size}
        cases[cell.quantizer] = training_step(model, recipe.train, folder)
    print(f"quantizers, K = {NUM_CODES:,}, batch {size}")
    return compare(cases, size, "vanilla", rounds, steps)


def options(folder: Path, rounds: int, steps: int) -> dict:
    """Rates of steps of three networks with each option."""
    comparison = cell_recipe(method_cells(NUM_CODES)[0], "none", folder)
    names = ("patch_size", "base_channels", "channel_multipliers", "num_res_blocks", "attention")
    shape = {name: comparison.model[name] for name in names} | {"image_size": comparison.data.image_size}
    result = {}
    for name, network in {"comparison_32": shape, **NETWORKS}.items():
        print(f"{name}, batch 32")
        cases = {}
        for option, train in OPTIONS.items():
            torch._dynamo.reset()
            config = TokenizerTrainConfig(batch_size=32, codebook_learning_rate=0.02, **train)
            cases[option] = training_step({**network, **CODES}, config, folder)
        result[name] = compare(cases, 32, "neither", rounds, steps)
    return result


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    machine = {"machine": processor_name(), "torch": torch.__version__}
    machine |= {"python": platform.python_version(), "threads": torch.get_num_threads(), "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as folder:
        settings = (Path(folder), arguments.rounds, arguments.steps)
        result = {**machine, "quantizers": quantizers(*settings), "options": options(*settings)}
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
