"""Files and output folders: a run starts in an empty place or resumes its own, and files appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import yaml

from wvq.errors import ConfigError, WVQError

RECIPE_NAME = "recipe.yaml"
INDEX_NAME = "model_index.json"  # of a pipeline folder, written last
JOB_NAME = "job.json"  # of a folder of samples, written first
IDENTITY_NAME = "identity.json"  # of a folder of features, written first
CHECKSUMS_NAME = "wvq_checksums.json"  # of a folder's weight files, beside them
TRAINING = "training"  # log, pictures and checkpoints of a stage, beside its weights


@contextlib.contextmanager
def whole_file(file: str | Path) -> Iterator[Path]:
    """A temporary file that takes the name ``file`` when the block ends well, and is removed when it does not."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")  # several processes may write the same file
    try:
        yield partial
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(file: str | Path, text: str) -> None:
    """Write a text file; it is complete or absent."""
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: str | Path, value) -> None:
    """Write a JSON file by way of a temporary one beside it."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(file: str | Path, error: type[WVQError], missing: str) -> dict:
    """The JSON object in a file.

    Args:
        file: the file.
        error: what to raise.
        missing: what to say when there is no such file.

    Raises:
        error: the file is missing, unreadable or no JSON object.
    """
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise error(missing) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise error(f"{file} cannot be read as JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise error(f"{file} must hold a JSON object")
    return value


def file_sha256(file: str | Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with Path(file).open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the name ``target`` when the block ends well, and is removed when it does not."""
    target = Path(target)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def files_into(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of ``folder`` one by one when the block ends well.

    For a folder that holds other things too. Weights come last: whoever finds them finds the config that fits them.
    Their checksums go first and come after them: a folder that is cut short in between has none, and no wrong ones.
    """
    folder = Path(folder)

    def rank(file: Path) -> tuple:
        return file.name == CHECKSUMS_NAME, file.suffix == ".safetensors", file.name

    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as partial:
        yield Path(partial)
        (folder / CHECKSUMS_NAME).unlink(missing_ok=True)
        for file in sorted(Path(partial).iterdir(), key=rank):
            os.replace(file, folder / file.name)


def refuse_occupied(folder: str | Path, what: str = "a run") -> None:
    """Raise ConfigError if the folder exists and is not empty."""
    folder = Path(folder)
    if folder.is_file():
        raise ConfigError(f"{folder} is there already; choose another name or remove it")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} already holds {what}; choose another output folder or remove it")


def refuse_data_folder(folder: str | Path, data: str) -> None:
    """Raise ConfigError if the folder is, or lies in, the one of the pictures, where it would count as a class."""
    if not Path(data).is_dir():
        return
    inside, pictures = Path(folder).resolve(), Path(data).resolve()
    if pictures in (inside, *inside.parents):
        raise ConfigError(f"out: {folder} lies in the folder of the pictures, {data}; choose one outside of it")


def start_stage(folder: str | Path, recipe, resume: bool) -> Path:
    """Claim the folder of a training stage and save the resolved recipe in it.

    Returns:
        The stage's ``training`` folder.

    Raises:
        ConfigError: the folder is a file, or holds another run; or, on resume, none, or one with another recipe.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out: {folder} is a file; choose another output folder")
    file = folder / RECIPE_NAME
    values = asdict(recipe)
    if resume:
        before = recipe_of_run(folder, type(recipe))
        if changed := _differences(before, values):
            raise ConfigError(f"{folder} was started with another {changed[0]}; resume with the recipe saved in {file}")
    elif file.exists() or (folder / "config.json").exists() or (folder / TRAINING).exists():
        raise ConfigError(
            f"{folder} already holds a run; pass --resume to continue it, or choose another output folder"
        )
    write_text(file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    (folder / TRAINING).mkdir(parents=True, exist_ok=True)
    return folder / TRAINING


# What a field stands for in runs that were started before there was the field, where that is not its default.
_MEANT_BEFORE = {"condition.joint_dropout": 0.0}


def recipe_of_run(folder: str | Path, recipe: type) -> dict:
    """The recipe that a run was started with, as nested dicts; fields that came later have the value they stand for.

    Raises:
        ConfigError: the folder holds no run.
    """
    file = Path(folder) / RECIPE_NAME
    if not file.exists():
        raise ConfigError(f"{folder} holds no run to resume ({RECIPE_NAME} is missing); start it without --resume")
    return _completed(yaml.safe_load(file.read_text(encoding="utf-8")), asdict(recipe()))


def _completed(saved, default, name: str = ""):
    if not isinstance(default, dict):
        return _MEANT_BEFORE.get(name, default) if saved is _ABSENT else saved
    values = {} if saved is _ABSENT else saved
    if not isinstance(values, dict):
        return values
    prefix = f"{name}." if name else ""
    return values | {key: _completed(values.get(key, _ABSENT), default[key], f"{prefix}{key}") for key in default}


_ABSENT = object()


def finished_run(folder: str | Path) -> dict | None:
    """The result of a run that has come to its end, with a warning; None if it has not, or if the clock ended it."""
    file = Path(folder) / "result.json"
    if not file.is_file() or not (Path(folder) / "model.safetensors").is_file():
        return None
    result = read_json(file, ConfigError, f"{file} is gone")
    if result.get("cut_short", True):
        return None
    warnings.warn(f"the run in {folder} has come to its end: nothing is left to resume", stacklevel=3)
    return result


# A resumed run may take longer, log, save and load in another rhythm, and go on past a picture that it had refused; all
# else would make it another run.
_FREE_ON_RESUME = {"train.max_minutes", "train.num_workers", "train.log_every", "train.save_every", "out"} | {
    "condition.text_cache",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "data.unreadable",
}


def _differences(before, after, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [d for key in keys for d in _differences(before.get(key), after.get(key), f"{prefix}{key}.")]
    name = prefix.removesuffix(".")
    return [] if before == after or name in _FREE_ON_RESUME else [f"{name} ({before!r}, now {after!r})"]
