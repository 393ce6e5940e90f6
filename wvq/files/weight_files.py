"""Weight files of model folders: written with their SHA-256 beside them, which is compared when they are loaded.

Safetensors has no checksum of its own, so a flipped bit among the weights would not be noticed. Hashing takes
about .6 seconds a GB (one core of an AMD EPYC).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from wvq.errors import CheckpointError, first_line
from wvq.files.atomic import file_sha256, files_into, read_json, write_json
from wvq.files.names import CHECKSUMS_NAME

_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"  # what transformers looks for, in this order


@contextlib.contextmanager
def written_weights(folder: str | Path) -> Iterator[Path]:
    """A temporary folder for a model's files, which replace those of ``folder`` when the block ends well.

    ``wvq_checksums.json`` comes with them, and weight files that the model had there in another form (one file or
    several) go. Weights of others that lie in the folder stay.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        former = _files_of_the_model(folder)
        with files_into(folder) as partial:
            yield partial
            files = {file.name: file_sha256(file) for pattern in _PATTERNS for file in sorted(partial.glob(pattern))}
            write_json(partial / CHECKSUMS_NAME, files)
        for name in former - files.keys():
            (folder / name).unlink(missing_ok=True)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the weights in {folder} could not be written ({first_line(error)}); make room and repeat the command, a "
            "training run with --resume"
        ) from error


def _files_of_the_model(folder: Path) -> set[str]:
    """Names of the weight files of the model that a folder holds, by its checksums and its index."""
    named = {_WEIGHTS, _INDEX}
    for file, read in ((CHECKSUMS_NAME, dict.keys), (_INDEX, _shards)):
        with contextlib.suppress(CheckpointError):  # not there, or damaged
            named |= set(read(read_json(folder / file, CheckpointError, f"{file} is not there")))
    return {
        name
        for name in named
        if isinstance(name, str) and Path(name).name == name and any(Path(name).match(pattern) for pattern in _PATTERNS)
    }


def _shards(index: dict[str, Any]) -> set[str]:
    names = index.get("weight_map")
    return {name for name in names.values() if isinstance(name, str)} if isinstance(names, dict) else set()


def verify_weights(folder: str | Path) -> None:
    """Compare the weight files of a folder with its ``wvq_checksums.json``; a folder without one passes.

    Weights that lie beside them and that transformers would not load, such as a LoRA, are not looked at.

    Raises:
        CheckpointError: a file is missing, is not the one that was saved, or would be loaded without having been saved
            with the others; or an adapter would be put into the model.
    """
    folder = Path(folder)
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and importlib.util.find_spec("peft"):
        raise CheckpointError(f"{adapter}: transformers would put this adapter into the model; keep it elsewhere")
    file = folder / CHECKSUMS_NAME
    if not file.is_file():
        return
    sums = read_json(file, CheckpointError, f"{file} is missing")
    for name in sums:
        if name not in _names_in(folder):
            raise CheckpointError(
                f"{folder}: {name[:80]}, of {CHECKSUMS_NAME}, is missing; save or download the folder again"
            )
    for name, expected in sums.items():
        try:
            actual = file_sha256(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read ({first_line(error)}); download it again") from error
        if actual != expected:
            raise CheckpointError(
                f"{folder / name} is not the file that was saved: its SHA-256 differs from {CHECKSUMS_NAME}. It was "
                f"damaged, and must be saved or downloaded again; if it was changed on purpose, remove {file}"
            )
    for name in sorted(_would_be_loaded(folder) - sums.keys(), key=lambda name: (name != _INDEX, name)):
        raise CheckpointError(
            f"{folder / name} was not saved with the other files of {folder} and would be loaded: remove it, or {file}"
        )


def _names_in(folder: Path) -> set[str]:
    return {file.name for pattern in _PATTERNS for file in folder.glob(pattern)}


def _would_be_loaded(folder: Path) -> set[str]:
    """Names of the files that transformers takes weights from, or might: the one file, and the index with its shards.

    A ``transformers_weights`` of the config names another one in their place.
    """
    names = {name for name in (_WEIGHTS, _INDEX) if (folder / name).exists()}
    config = folder / "config.json"
    values = read_json(config, CheckpointError, f"{config} is missing") if config.is_file() else {}
    if isinstance(named := values.get("transformers_weights"), str):
        names.add(named)
    for name in [name for name in names if name.endswith(".json") and (folder / name).is_file()]:
        names |= _shards(read_json(folder / name, CheckpointError, f"{folder / name} is missing"))
    return names
