"""SHA-256 of a model folder's weight files, written beside them: damage in storage or transfer is found on loading.

Safetensors has no checksum of its own, so that a flipped bit among the weights would load without a word.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from wvq.errors import CheckpointError
from wvq.outputs import read_json, write_json

CHECKSUMS_NAME = "checksums.json"


def file_sha256(file: str | Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_checksums(folder: str | Path) -> None:
    """Write ``checksums.json`` for the weight files in a folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    write_json(Path(folder) / CHECKSUMS_NAME, {file.name: file_sha256(file) for file in files})


def verify_checksums(folder: str | Path) -> None:
    """Hold the weight files of a folder against its ``checksums.json``; a folder without one passes.

    Raises:
        CheckpointError: a file is missing or is not the one that was saved.
    """
    file = Path(folder) / CHECKSUMS_NAME
    if not file.is_file():
        return
    for name, expected in read_json(file, CheckpointError, f"{file} is missing").items():
        weights = Path(folder) / Path(name).name  # never a file elsewhere
        if not weights.is_file():
            raise CheckpointError(f"{weights} is missing; save or download the folder again")
        if file_sha256(weights) != expected:
            raise CheckpointError(
                f"{weights} is not the file that was saved: its SHA-256 differs from {CHECKSUMS_NAME}. It was damaged, "
                f"and must be saved or downloaded again; if it was changed on purpose, remove {file}"
            )
