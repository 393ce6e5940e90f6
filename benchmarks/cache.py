"""Memory that a code cache takes while it is written and while it is read.

    python -m benchmarks.cache [--rows 2000000] [--out docs/results/cache_memory.json]

Rows of 256 codes (K = 16,384) in ten crops a picture, with a class and a caption each. Each measurement has its own
process: "write" writes the rows as an export does, in files of 10,240; "read" opens that cache and reads batches of
256 in the order of a run; "read_small_pieces" the same from a cache with 1,000 rows in a piece, as earlier versions
wrote them. Anonymous memory is the process's own; mapped memory is the file's, which the system takes back when it is
needed elsewhere. Both are what the work has added to a process that has imported everything, in MiB, at their peaks.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import torch

import wvq
from wvq.data.code_tables import finish_table, row_features, write_shard
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.files.atomic import write_json
from wvq.hardware import processor_name
from wvq.tokenizer.export_work import MOST
from wvq.training.order import RunSampler

NUM_CODES, LENGTH, CROPS, BATCH = 16_384, 256, 10, 256
FILE_ROWS, SMALL_PIECE = MOST * CROPS, 1_000


def batches(count: int, seed: int) -> Iterator[dict]:
    """Rows of noise in batches, as :func:`wvq.data.code_tables.write_shard` takes them."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        yield {
            "codes": torch.randint(0, NUM_CODES, (size, LENGTH), generator=generator),
            "label": [(start + i) // CROPS % 1000 for i in range(size)],
            "caption": [(f"picture {(start + i) // CROPS} of file {seed}",) for i in range(size)],
        }


def write(folder: Path, rows: int) -> None:
    """Write a cache of ``rows`` rows, as an export does."""
    features, names = row_features(NUM_CODES, LENGTH), []
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        names.append(f"data-{number:05d}.arrow")
        write_shard(folder / "train" / names[-1], batches(min(FILE_ROWS, rows - start), number), features)
    finish_table(folder / "train", names, features, "0" * 32)
    CodeHeader(
        "0" * 64, NUM_CODES, [16, 16], 256, {"train": "ten(0.909)", "validation": "center"}, CROPS,
        [str(i) for i in range(1000)], "noise", {"train": rows // CROPS, "validation": 0}, True, wvq.__version__,
    ).save(folder)  # fmt: skip


def copy_in_small_pieces(folder: Path, target: Path) -> None:
    """Write a cache again in pieces of 1,000 rows, as earlier versions did."""
    table = datasets.load_from_disk(str(folder / "train"))
    table.save_to_disk(str(target / "train"))  # which writes pieces of 1,000 rows
    CodeHeader.read(folder).save(target)


def read(folder: Path, count: int) -> None:
    """Read ``count`` batches of a cache in the order of a run."""
    codes = CodeDataset(folder)
    sampler = iter(RunSampler(len(codes), BATCH, 0))
    for _ in range(count):
        keys = list(islice(sampler, BATCH))
        codes.batch(keys)
        codes.texts(keys[0][1])


def memory() -> dict[str, int]:
    """Anonymous and mapped memory of this process, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"anonymous": sizes["Anonymous"], "mapped": sizes["Rss"] - sizes["Anonymous"]}


def peaks(work, *arguments) -> dict[str, float]:
    """Peaks of both memories above their values before, in MiB, and the seconds that the work took."""
    before, peak, ended = memory(), memory(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            peak.update({name: max(peak[name], value) for name, value in memory().items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work(*arguments)
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    return {f"{name}_mib": round((peak[name] - before[name]) / 2**20, 1) for name in peak} | {"seconds": round(seconds)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batches", type=int, default=2_000, help="batches to read")
    parser.add_argument("--folder", type=Path, help="where the caches are written; a temporary folder if not given")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", help="measure one step, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step:
        large, small = arguments.folder / "large", arguments.folder / "small"
        steps = {
            "write": (write, large, arguments.rows),
            "read": (read, large, arguments.batches),
            "copy": (copy_in_small_pieces, large, small),
            "read_small_pieces": (read, small, arguments.batches),
        }
        print(json.dumps(peaks(*steps[arguments.step])))
        return
    result = {"rows": arguments.rows, "codes_a_row": LENGTH, "batches_read": arguments.batches}
    result["codes_mib"] = round(arguments.rows * LENGTH * np.dtype(np.uint16).itemsize / 2**20, 1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for step in ("write", "read", "copy", "read_small_pieces"):
            command = [sys.executable, "-m", "benchmarks.cache", "--step", step, "--folder", folder]
            command += ["--rows", str(arguments.rows), "--batches", str(arguments.batches)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            if step != "copy":
                result[step] = json.loads(done.stdout.splitlines()[-1])
            print(step, done.stdout.strip(), flush=True)
    if arguments.out:
        machine = {"machine": processor_name(), "torch": torch.__version__, "datasets": datasets.__version__}
        write_json(arguments.out, {**machine, "python": platform.python_version(), **result})


if __name__ == "__main__":
    main()
