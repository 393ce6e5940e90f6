"""Weight files of model folders: written with their SHA-256 beside them, and held against it when they are loaded.

Safetensors has no checksum of its own, so that a flipped bit among the weights would load without a word. Hashing takes
some .6 seconds a GB (one core of an AMD EPYC).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from wvq.errors import CheckpointError, first_line
from wvq.outputs import CHECKSUMS_NAME, file_sha256, files_into, read_json, write_json

_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


@contextlib.contextmanager
def written_weights(folder: str | Path) -> Iterator[Path]:
    """A temporary folder for a model's files, which replace those of ``folder`` when the block ends well.

    ``wvq_checksums.json`` comes with them, and weight files that were there in another form (one file or several) go.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files_into(folder) as partial:
            yield partial
            files = _weight_files(partial)
            write_json(partial / CHECKSUMS_NAME, {file.name: file_sha256(file) for file in files})
        for stale in _weight_files(folder):
            if stale.name not in {file.name for file in files}:
                stale.unlink()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the weights in {folder} could not be written ({first_line(error)}); make room and repeat the command, a "
            "training run with --resume"
        ) from error


def verify_weights(folder: str | Path) -> None:
    """Hold the weight files of a folder against its ``wvq_checksums.json``; a folder without one passes.

    Raises:
        CheckpointError: a file is missing, is not the one that was saved, or was not saved with the others.
    """
    folder = Path(folder)
    file = folder / CHECKSUMS_NAME
    if not file.is_file():
        return
    sums = read_json(file, CheckpointError, f"{file} is missing")
    there = {weights.name: weights for weights in _weight_files(folder)}
    for name in sums.keys() - there.keys():
        raise CheckpointError(
            f"{folder}: {name[:80]}, of {CHECKSUMS_NAME}, is missing; save or download the folder again"
        )
    for name in there.keys() - sums.keys():
        raise CheckpointError(f"{there[name]} was not saved with the other files of {folder}: remove it, or {file}")
    for name, expected in sums.items():
        try:
            found = file_sha256(there[name])
        except OSError as error:
            raise CheckpointError(f"{there[name]} cannot be read ({first_line(error)}); download it again") from error
        if found != expected:
            raise CheckpointError(
                f"{there[name]} is not the file that was saved: its SHA-256 differs from {CHECKSUMS_NAME}. It was "
                f"damaged, and must be saved or downloaded again; if it was changed on purpose, remove {file}"
            )


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for pattern in _PATTERNS for file in folder.glob(pattern))
