"""Tar shards in the form of WebDataset, made of small pictures."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.drawings import COLORS, SHAPES, draw_shape


def write_tar(file: Path, samples: Sequence[tuple[str, Mapping[str, bytes | str]]]) -> Path:
    """Write one shard: keys with their parts by ending."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for key, parts in samples:
            for ending, content in parts.items():
                data = content.encode() if isinstance(content, str) else content
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file


def picture_bytes(number: int, kind: str = "PNG") -> bytes:
    """The file of a picture of 24 x 24 pixels, another one for each number."""
    file = io.BytesIO()
    shape, color = SHAPES[number % len(SHAPES)], list(COLORS)[number % len(COLORS)]
    draw_shape(shape, color, np.random.default_rng(number)).save(file, kind)
    return file.getvalue()


def sample(number: int, parts: Sequence[str] = ("cls", "txt")) -> tuple[str, dict[str, bytes | str]]:
    """A sample as ImageNet mirrors (``cls``) and img2dataset (``txt``, ``json``) have it; captions name its number."""
    label = number % len(SHAPES)
    every = {
        "cls": str(label),
        "txt": f"picture {number}",
        "json": json.dumps({"caption": f"picture {number}", "label": label, "error": None if number else "none"}),
    }
    return f"{number:06d}", {"png": picture_bytes(number), **{part: every[part] for part in parts}}


def write_shards(folder: Path, counts: Sequence[int], parts: Sequence[str] = ("cls", "txt"), name: str = "") -> Path:
    """Write ``00000.tar`` and so on (behind ``name``) with so many samples each; numbers go on over the shards."""
    first = 0
    for shard, count in enumerate(counts):
        write_tar(folder / f"{name}{shard:05d}.tar", [sample(n, parts) for n in range(first, first + count)])
        first += count
    return folder
