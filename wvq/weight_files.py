"""Weight files of model folders: written with their SHA-256 beside them, and held against it when they are loaded.

Safetensors has no checksum of its own, so that a flipped bit among the weights would load without a word. Hashing takes
some .6 seconds a GB (one core of an AMD EPYC).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from wvq.errors import CheckpointError, first_line
from wvq.outputs import read_json, write_json

CHECKSUMS_NAME = "checksums.json"


@contextlib.contextmanager
def written_weights(folder: str | Path) -> Iterator[None]:
    """Around the writing of weight files into a folder: writes their ``checksums.json`` after it.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    try:
        yield
        files = sorted(Path(folder).glob("*.safetensors"))
        write_json(Path(folder) / CHECKSUMS_NAME, {file.name: _sha256(file) for file in files})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the weights in {folder} could not be written ({first_line(error)}); make room and repeat the command, a "
            "training run with --resume"
        ) from error


def verify_weights(folder: str | Path) -> None:
    """Hold the weight files of a folder against its ``checksums.json``; a folder without one passes.

    Raises:
        CheckpointError: a file is missing or is not the one that was saved.
    """
    file = Path(folder) / CHECKSUMS_NAME
    if not file.is_file():
        return
    for name, expected in read_json(file, CheckpointError, f"{file} is missing").items():
        weights = Path(folder) / name
        if Path(name).name != name or not weights.is_file():
            raise CheckpointError(f"{weights}, of {CHECKSUMS_NAME}, is missing; save or download the folder again")
        if _sha256(weights) != expected:
            raise CheckpointError(
                f"{weights} is not the file that was saved: its SHA-256 differs from {CHECKSUMS_NAME}. It was damaged, "
                f"and must be saved or downloaded again; if it was changed on purpose, remove {file}"
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
