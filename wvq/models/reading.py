"""Folders of models, local or of the Hub: where they are, and what goes wrong where they are read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import StrictDataclassError

from wvq.errors import CheckpointError, ConfigError, DownloadError, first_line
from wvq.files.user_folders import expand_user

# Weights as safetensors only, and what configs, tokenizers of text encoders and model cards need.
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md")
# What transformers raises over values that it would never write into a file. For calls that do nothing but read files:
# what else can go wrong in them, as an option that cannot be, is checked before.
DAMAGES = (
    *(OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError),
    StrictDataclassError,  # of the fields that all configs share
)


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Within the block transformers loads all weights in every process of a sharded run.

    By itself it may leave them 0 in all processes but the first, which would send them when the model is sharded. Here
    models are loaded to be used as they are.
    """
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    if before is None:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ[name] = before


def why_unloadable(folder: Path, error: Exception) -> str:
    """Why a folder does not load as another library's model: the error's first line, or the file that is to blame.

    transformers takes any JSON for an object, and ends in an error that names no file.
    """
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"):
        try:
            is_object = isinstance(json.loads((folder / name).read_text(encoding="utf-8")), dict)
        except (OSError, ValueError, RecursionError):  # of that the library speaks itself
            continue
        if not is_object:
            return f"{name} must hold a JSON object"
    return first_line(error)


def resolve_folder(
    path: str | os.PathLike[str] | None,
    kind: str,
    files: Sequence[str] = _HUB_FILES,
    subfolder: str | None = None,
    **hub_options: Any,
) -> Path:
    """Return the local folder behind a path or a Hub id (downloaded through huggingface_hub).

    Args:
        path: the folder or Hub id.
        kind: what it holds, for the error.
        files: patterns of the files that are needed of a Hub id.
        subfolder: folder in that one, to return in its place.
        hub_options: for the Hub client.

    Raises:
        ConfigError: no path.
        CheckpointError: a local path that does not exist or is no folder.
        DownloadError: a Hub id that cannot be reached or does not exist.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ConfigError(f"from_pretrained needs the folder or Hub id of a {kind}, got {path!r}")
    folder = expand_user(path)
    if not folder.is_dir():
        if folder.exists():
            raise CheckpointError(f"{folder} is a file, not a {kind} folder")
        inside = f"{subfolder.strip('/')}/" if subfolder else ""
        folder = _downloaded(str(path), kind, [inside + pattern for pattern in files], hub_options)
    if subfolder and not (folder / subfolder).is_dir():
        raise CheckpointError(f"{folder} holds no folder {subfolder}; check subfolder")
    return folder / (subfolder or "")


def _downloaded(text: str, kind: str, files: list[str], hub_options: dict[str, Any]) -> Path:
    if Path(text).parent.is_dir() and text.count("/") == 1:
        raise CheckpointError(f"{text}: no such {kind} folder; check the path")
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise CheckpointError(f"{text}: no such {kind} folder, and not a Hub id of the form owner/name")
    try:
        return Path(huggingface_hub.snapshot_download(text, allow_patterns=files, **hub_options))
    except Exception as error:  # the hub client raises many families: HTTP, offline, validation, OS
        raise DownloadError(
            f'"{text}" is no local folder and could not be fetched from the Hub '
            f"({type(error).__name__}: {first_line(error)}); "
            f"check the name and the network, or pass a local {kind} folder"
        ) from error
