"""How fast pictures are read from JPEG files, by one core and by a GPU; a part of benchmarks/gpu_training.py."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.gpu_machine import wait_for
from wvq.data.pictures import EncodedStore
from wvq.data.pixels import random_crop, to_pixels


def jpegs(count: int, height: int, width: int) -> list[bytes]:
    """JPEG files of blurred noise, which compresses about as pictures of things do."""
    generator, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        fine = generator.normal(0, 6, (height, width, 3))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + fine
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


class Encoded:
    """A picture by its bytes, for :class:`EncodedStore`."""

    name = "noise"

    def __init__(self, content: bytes):
        self.encoded: dict[str, Any] = {"bytes": content, "path": None}


def rate(work: Callable[[], object], pictures: int, device: str, seconds: float) -> float:
    """Pictures a second, of repetitions for some seconds."""
    work()
    wait_for(device)
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        work()
        done += pictures
    wait_for(device)
    return done / (time.perf_counter() - start)


def loading_cases(device: str, tiny: bool) -> Iterator[tuple[dict[str, str], Callable[[], dict[str, float]]]]:
    """What names a way of reading JPEGs of 500 x 375, and what measures its pictures a second."""
    files = jpegs(4 if tiny else 32, 375, 500)
    most = 0.1 if tiny else 1.0
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    generator = np.random.default_rng(0)

    def ours() -> None:
        store = EncodedStore(256)
        for file in files:
            to_pixels(random_crop(store.prepared(Encoded(file)), 256, 0.8, generator))

    def decoding() -> None:
        for file in files:
            Image.open(io.BytesIO(file)).load()

    def torchvision_decoding(where: str) -> None:
        if where == "cpu":
            for tensor in tensors:
                decode_jpeg(tensor, ImageReadMode.RGB)
        else:
            decode_jpeg(tensors, ImageReadMode.RGB, device=where)

    works: dict[str, tuple[str, Callable[[], None]]] = {
        "decoded, cropped, as a tensor (ours)": ("cpu", ours),
        "decoded by Pillow": ("cpu", decoding),
        "decoded by torchvision": ("cpu", lambda: torchvision_decoding("cpu")),
    }
    if device != "cpu":
        works["decoded by torchvision on the GPU"] = (device, lambda: torchvision_decoding(device))
    for name, (where, work) in works.items():
        yield {"loading": name}, lambda w=work, on=where: {"pictures_a_second": rate(w, len(files), on, most)}
