"""Rows a second that an export writes, compared with decoding alone.

    python -m benchmarks.export [--pictures 400] [--rounds 3] [--out docs/results/export_speed.json]

JPEGs of 500 x 375 pixels, ten crops of 256 each, a small tokenizer. "decode": each picture opened, decoded and cut into
its ten crops in one process, and nothing else; "decode_each": the same with a decoding for every crop, as without the
loader. "export" is the whole command with no loader process, "export_loaders" with some; each makes a new cache. The
ratio is the share of the rate of bare decoding that an export reaches.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wvq.data.dataset import ImageDataset, load_images
from wvq.data.pictures import decode
from wvq.files.atomic import write_json
from wvq.hardware import hardware
from wvq.settings.data import DataConfig
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.export import Versions, export_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import ExportRecipe

CROPS, WIDTH, HEIGHT = 10, 500, 375


def write_pictures(folder: Path, count: int) -> None:
    """Write smooth colour fields with some edges, which JPEG compresses like photographs: about 50 kB each."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        picture = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        fine = Image.fromarray(rng.integers(0, 256, (HEIGHT // 3, WIDTH // 3, 3), dtype=np.uint8))
        picture = Image.blend(picture, fine.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), 0.15)
        file = folder / f"{index % 4}" / f"{index:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, quality=90)


def small_tokenizer(folder: Path) -> Path:
    """Save a small tokenizer with random weights; returns its folder."""
    torch.manual_seed(0)
    size = {"image_size": 256, "patch_size": 16, "base_channels": 16, "channel_multipliers": [1], "num_res_blocks": 1}
    WassersteinVQModel(WassersteinVQConfig(**size, attention=False, num_codes=1024, code_dim=8)).save_pretrained(folder)
    return folder


def decoding(dataset: ImageDataset, once: bool) -> None:
    """Cut every picture into its crops, decoding it once or for each crop."""
    versions = Versions(dataset, "train", CROPS)
    for index in range(len(versions)):
        if once:
            versions[index]
            continue
        for crop in range(CROPS):
            decode({"bytes": None, "path": dataset.table.pictures[index]["image"]["path"]}) if crop else None
            versions.crop(index, crop)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_workers", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        write_pictures(root / "pictures" / "train", arguments.pictures)
        write_pictures(root / "pictures" / "validation", 4)
        tokenizer = small_tokenizer(root / "tokenizer")
        data = DataConfig(path=str(root / "pictures"), image_size=256, crop="ten", min_crop_fraction=0.909)
        train = load_images(data).train
        numbers = iter(range(10**6))

        def export(num_workers: int) -> None:
            out = str(root / f"codes-{next(numbers)}")
            export_codes(ExportRecipe(out, str(tokenizer), data, num_crops=CROPS, num_workers=num_workers))

        cases: dict[str, Callable[[], None]] = {
            "decode": lambda: decoding(train, True),
            "decode_each": lambda: decoding(train, False),
            "export": lambda: export(0),
            "export_loaders": lambda: export(arguments.num_workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(arguments.rounds):
            for name in list(cases) if number % 2 else list(cases)[::-1]:
                start = time.perf_counter()
                cases[name]()
                rates[name].append(arguments.pictures * CROPS / (time.perf_counter() - start))
    result = {"rows_per_second": {name: round(statistics.median(values), 1) for name, values in rates.items()}}
    for name in ("export", "export_loaders"):
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates["decode"], strict=True))
        result[f"{name}_to_decode"] = round(ratio, 2)
    print(result)
    if arguments.out:
        about = {**hardware(), "torch": torch.__version__, "python": platform.python_version()}
        counts = {name: getattr(arguments, name) for name in ("pictures", "rounds", "num_workers")}
        write_json(arguments.out, {**about, **counts, "crops": CROPS, **result})


if __name__ == "__main__":
    main()
