"""Rows a second that a code cache feeds to the training loop, on one core.

    python -m benchmarks.reader [--rounds 7] [--out docs/results/reader_speed.json]

A cache of 50,000 pictures in ten crops of 256 codes (K = 16,384), with classes; batches of 256 in the order of a run,
by the DataLoader of the training loop without workers. "captions": the same with text features of 64 tokens of 768.
"plain": the `datasets` table itself under its torch format and a shuffled DataLoader, as one would write by hand.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader

import wvq
from wvq.data.code_tables import finish_table, row_features, write_shard
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.files.atomic import write_json
from wvq.generator.conditioned_codes import ConditionedCodes
from wvq.generator.text.cache import PartSizes, TextFeatures
from wvq.generator.text.captions import CaptionIndex
from wvq.hardware import processor_name
from wvq.training.order import RunSampler

PICTURES, CROPS, BATCH = 50_000, 10, 256
FILE = "data-00000-of-00001.arrow"


def write_cache(folder: Path) -> None:
    """Write a cache of random codes."""
    header = CodeHeader(
        "0" * 64, 16_384, [16, 16], 256, {"train": "ten(0.909)", "validation": "center"}, CROPS,
        [str(i) for i in range(1000)], "noise", {"train": PICTURES, "validation": 64}, True, wvq.__version__,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    features = row_features(header.num_codes, header.sequence_length)
    for split, count in (("train", PICTURES * CROPS), ("validation", 64)):
        parts = range(0, count, 10_000)
        batches = (
            {
                "codes": torch.randint(0, 16_384, (size := min(10_000, count - start), 256), generator=generator),
                "label": [i // CROPS % 1000 for i in range(start, start + size)],
                "caption": [("a picture",)] * size,
            }
            for start in parts
        )
        write_shard(folder / split / FILE, batches, features)
        finish_table(folder / split, [FILE], features, split)
    header.save(folder)


def reading(dataset) -> Callable[[int], None]:
    """A function that reads a number of batches as the training loop does."""
    sampler = RunSampler(PICTURES, BATCH, 0)
    batches = iter(DataLoader(dataset, BATCH, sampler=sampler, collate_fn=dataset.collate_fn))

    def read(count: int) -> None:
        for _ in range(count):
            next(batches)

    return read


def plain(folder: Path) -> Callable[[int], None]:
    """A function that reads a number of batches from the `datasets` table itself."""
    table = datasets.load_from_disk(str(folder / "train")).select_columns(["codes", "label"]).with_format("torch")
    batches = iter(DataLoader(table, BATCH, shuffle=True))

    def read(count: int) -> None:
        for _ in range(count):
            next(batches)

    return read


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=40, help="of a round")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder))
        codes = CodeDataset(folder)
        captioned = ConditionedCodes(codes, True, None)
        texts = [(f"text {i % 1_000}",) for i in range(PICTURES)]
        captioned.captions = CaptionIndex([texts], lambda picture: texts[picture])
        sizes = PartSizes(1_000, 64, 768)
        tokens = [np.zeros((len(sizes.rows(part)) * 64, 768), np.float16) for part in range(sizes.parts)]
        captioned.text = TextFeatures(tokens, np.arange(1_001) * 64, sizes)
        cases = {"codes": reading(ConditionedCodes(codes, True, None)), "captions": reading(captioned)}
        cases["plain"] = plain(Path(folder))
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(arguments.rounds):
            for name in list(cases) if number % 2 else list(cases)[::-1]:
                start = time.perf_counter()
                cases[name](arguments.batches)
                rates[name].append(arguments.batches * BATCH / (time.perf_counter() - start))
    rows = {name: round(statistics.median(values)) for name, values in rates.items()}
    ratio = statistics.median(a / b for a, b in zip(rates["codes"], rates["plain"], strict=True))
    result = {"rows_per_second": rows, "codes_to_plain": round(ratio, 2)}
    print(result)
    if arguments.out:
        machine = {"machine": processor_name(), "torch": torch.__version__}
        machine |= {"datasets": datasets.__version__, "python": platform.python_version(), "threads": 1}
        write_json(arguments.out, {**machine, "rounds": arguments.rounds, **result})


if __name__ == "__main__":
    main()
