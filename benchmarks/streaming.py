"""Pictures a second of a stream of tar shards against a folder of the same files, and what a stream holds in memory.

    python -m benchmarks.streaming [--rounds 7] [--out docs/results/streaming.json]

Speed: 4,000 JPEGs of 256 x 256 in 40 shards, and as files in class folders, in the order of a training run; random
crops of 128 pixels, batches of 64, 2 loader processes, in paired rounds. "reading": the shards alone, one after the
other, without decoding. Memory: the most that the training process, and one of its 2 loader processes, held over one
pass of 4, 40 and 400 shards, of 50 pictures of 10 KB each, with a shuffle buffer of 200; new processes for each.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import PIL
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader

from wvq.data.dataset import ImageDataset
from wvq.data.opening import open_images
from wvq.data.stream import Pictures, StreamedImages
from wvq.files.atomic import write_json
from wvq.hardware import processor_name
from wvq.settings.data import DataConfig
from wvq.training.order import RunSampler
from wvq.training.stream_order import StreamOrder

BATCH, LOADERS, CLASSES = 64, 2, 10


def jpeg(number: int, size: int) -> bytes:
    """A picture with detail at two scales, about as large a file as a photograph of this size."""
    rng = np.random.default_rng(number)
    picture = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)).resize((size, size))
    detail = rng.integers(-12, 13, (size, size, 1))
    file = io.BytesIO()
    Image.fromarray((np.asarray(picture) + detail).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_shards(folder: Path, shards: int, pictures: int, size: int, files: Path | None = None) -> None:
    """Write shards, and the same pictures into class folders."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * pictures, (shard + 1) * pictures):
                content, label = jpeg(number, size), number % CLASSES
                for ending, part in (("jpg", content), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{ending}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
                if files is not None:
                    (files / str(label)).mkdir(parents=True, exist_ok=True)
                    (files / str(label) / f"{number:08d}.jpg").write_bytes(content)


def config(path: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"path": str(path), "image_size": 128, "crop": "random", "flip": True, **changes})


def batches(images: Pictures) -> Iterator[dict]:
    """Batches as the training loop draws them."""
    if isinstance(images, StreamedImages):
        order = StreamOrder(images, BATCH, BATCH, 0, 0, 1)
        return iter(DataLoader(images, batch_sampler=order, num_workers=LOADERS, collate_fn=images.collate_fn))
    return iter(DataLoader(images, BATCH, sampler=RunSampler(len(images), BATCH, 0), num_workers=LOADERS))


def measure_speed(folder: Path, rounds: int, count: int) -> dict[str, object]:
    write_shards(folder / "shards", 40, 100, 256, folder / "files")
    stream = open_images(config(folder / "shards", stream=True)).train
    table = open_images(config(folder / "files")).train
    assert isinstance(stream, StreamedImages)
    assert isinstance(table, ImageDataset)
    cases = {"stream": batches(stream), "folder": batches(table)}
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name in list(cases) if number % 2 else list(cases)[::-1]:
            start = time.perf_counter()
            for _ in islice(cases[name], count):
                pass
            if number:  # the first round fills the loaders' queues
                rates[name].append(count * BATCH / (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(rates["stream"], rates["folder"], strict=True)]
    start = time.perf_counter()
    rates["reading"] = [sum(1 for _ in stream.share()) / (time.perf_counter() - start)]
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    return {"pictures_per_second": medians, "stream_to_folder": round(statistics.median(ratios), 2)}


def print_peaks(shards: str) -> None:
    """Print the MB that a pass in the order of training holds at most: its process, and the larger loader process."""
    images = open_images(config(Path(shards), stream=True, image_size=32, shuffle_buffer=200)).train
    assert isinstance(images, StreamedImages)
    count = sum(1 for _ in images.share()) // BATCH
    process, loader, this = 0, 0, psutil.Process()
    for _ in islice(batches(images), count):
        process = max(process, this.memory_info().rss)
        loader = max(loader, *(child.memory_info().rss for child in this.children()))
    print(round(process / 2**20), round(loader / 2**20))


def measure_memory(folder: Path) -> dict[str, dict[str, int]]:
    write_shards(folder / "small", 400, 50, 128)
    peaks = {}
    for shards in (4, 40, 400):
        path = f"{folder}/small/{{00000..{shards - 1:05d}}}.tar"
        command = [sys.executable, "-m", "benchmarks.streaming", "--peaks-of", path]
        numbers = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        peaks[str(shards)] = dict(zip(("process", "loader"), map(int, numbers), strict=True))
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=16, help="of a round")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peaks-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peaks_of:
        return print_peaks(arguments.peaks_of)
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, object] = measure_speed(Path(folder), arguments.rounds, arguments.batches)
        result["megabytes_by_shards"] = measure_memory(Path(folder))
    print(result)
    if arguments.out:
        machine = {"machine": processor_name(), "torch": torch.__version__, "pillow": PIL.__version__}
        machine |= {"datasets": datasets.__version__, "python": platform.python_version(), "loaders": LOADERS}
        write_json(arguments.out, {**machine, "rounds": arguments.rounds, **result})


if __name__ == "__main__":
    main()
