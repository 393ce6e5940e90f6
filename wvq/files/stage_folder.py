"""Output folders and the recipe in them: a run starts in an empty place, or goes on with the recipe of its start."""

from __future__ import annotations

import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wvq.errors import ConfigError
from wvq.files.atomic import read_json, write_text
from wvq.files.names import CHECKSUMS_NAME, FINGERPRINT_NAME, INDEX_NAME, RECIPE_NAME, TRAINING
from wvq.files.reading import read_yaml
from wvq.files.user_folders import expand_user

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def former_identity(file: Path) -> str:
    """The warning where work goes on from a file of an earlier version, which knew models by their weights alone."""
    return f"{file} is of an earlier version and knows models by their weights alone: a changed config would go unseen"


def refuse_occupied(folder: str | Path, contents: str = "a run") -> None:
    """Raise ConfigError if the folder exists and is not empty."""
    folder = Path(folder)
    if folder.is_file():
        raise ConfigError(f"{folder} is there already; choose another name or remove it")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} already holds {contents}; choose another output folder or remove it")


def refuse_data_folder(folder: str | Path, data: str, contents: str = "pictures") -> None:
    """Raise ConfigError if the folder is, or lies in, the one of the data, where it would count as a part of them."""
    pictures = expand_user(data).resolve()
    if not pictures.is_dir():
        return
    inside = Path(folder).resolve()
    if pictures in (inside, *inside.parents):
        raise ConfigError(f"out: {folder} lies in the folder of the {contents}, {data}; choose one outside of it")


def read_recipe(file: str | Path) -> dict[str, Any]:
    """The fields of a recipe in YAML.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        values = read_yaml(file)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"recipe {file} cannot be read as YAML ({problem})") from problem
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {file} must hold fields by name")
    return values


def start_stage(folder: str | Path, recipe: DataclassInstance, resume: bool) -> Path:
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
        changes = {
            name: f"{name} ({old!r}, now {new!r})"
            for name, (old, new) in differences(before, values).items()
            if not _are_one_path(old, new)
        }
        # A run that knows its pictures compares them wherever they lie.
        free = _FREE_ON_RESUME | ({"data.path"} if (folder / FINGERPRINT_NAME).exists() else set())
        if other := [change for name, change in changes.items() if name not in free]:
            raise ConfigError(f"{folder} was started with another {other[0]}; resume with the recipe saved in {file}")
        if taken := [change for name, change in changes.items() if name != "out"]:
            warnings.warn(f"the run goes on with another {', '.join(taken)}", stacklevel=2)
    elif not (folder / TRAINING).exists() and any((folder / name).exists() for name in ("config.json", INDEX_NAME)):
        raise ConfigError(f"{folder} already holds a model; choose another output folder")
    elif file.exists() or (folder / TRAINING).exists():
        raise ConfigError(
            f"{folder} already holds a run; pass --resume to continue it, or choose another output folder"
        )
    elif folder.exists() and (result := next(filter(_is_written_at_the_end, sorted(folder.iterdir())), None)):
        raise ConfigError(f"{result} would be written over at the end of the run; choose another output folder")
    write_text(file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    (folder / TRAINING).mkdir(parents=True, exist_ok=True)
    return folder / TRAINING


def _are_one_path(before: object, after: object) -> bool:
    """Whether two texts are forms of one path: earlier versions saved a path as it was written."""
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    try:
        return expand_user(before) == expand_user(after)
    except ConfigError:
        return False


def _is_written_at_the_end(file: Path) -> bool:
    names = {"result.json", "preprocessor_config.json", CHECKSUMS_NAME}
    return file.name in names or re.fullmatch(r"model.*\.safetensors(\.index\.json)?", file.name) is not None


def recipe_of_run(folder: str | Path, recipe: type[DataclassInstance]) -> dict[str, Any]:
    """The recipe that a run was started with, as nested dicts; fields that came later have the value they stand for.

    Raises:
        ConfigError: the folder holds no run.
    """
    file = Path(folder) / RECIPE_NAME
    if not file.exists():
        raise ConfigError(f"{folder} holds no run to resume ({RECIPE_NAME} is missing); start it without --resume")
    saved, defaults = read_recipe(file), asdict(recipe())
    for name in former_fields(recipe):
        group, _, field = name.rpartition(".")
        if isinstance(saved.get(group), dict):
            saved[group].pop(field, None)
    for name, value in getattr(recipe, "LATER_FIELDS", {}).items():
        group, _, field = name.rpartition(".")
        defaults[group][field] = value
    return _completed(saved, defaults)


def former_fields(recipe: type) -> dict[str, Any]:
    """Fields that a recipe of this kind had in an earlier version, where they did nothing: defaults by dotted name.

    A recipe class names them in ``FORMER_FIELDS``. Its ``LATER_FIELDS`` hold the values of newer fields in runs of
    versions before them, where these are not the defaults.
    """
    return getattr(recipe, "FORMER_FIELDS", {})


def _completed(saved: Any, default: Any) -> Any:
    """The saved values, and the default of each that is not there."""
    if not isinstance(saved, dict) or not isinstance(default, dict):
        return saved
    return saved | {key: _completed(saved[key], value) if key in saved else value for key, value in default.items()}


def finished_run(folder: str | Path) -> dict[str, Any] | None:
    """The result of a run that has come to its end, with a warning; None if it has not, or if the clock ended it."""
    file = Path(folder) / "result.json"
    if not file.is_file() or not (Path(folder) / "model.safetensors").is_file():
        return None
    result = read_json(file, ConfigError, f"{file} is missing")
    if result.get("cut_short", True):
        return None
    warnings.warn(f"the run in {folder} has come to its end: nothing is left to resume", stacklevel=3)
    return result


# A resumed run may take longer, log, save and load at other intervals, skip a picture that it had refused, and compute
# the same steps in another way, up to rounding; any other change would make it another run.
_FREE_ON_RESUME = {
    "out",
    "condition.text_cache",
    "data.ignore_mixed_split",
    "data.unreadable",
    "train.max_minutes",
    "train.num_workers",
    "train.log_every",
    "train.evaluate_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.compile",
    "train.channels_last",
    "train.gradient_checkpointing",
}


def differences(before: object, after: object, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Values that differ between two nested objects, as (before, after) by dotted name; None for what is not there."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        below = [differences(before.get(key), after.get(key), f"{prefix}{key}.") for key in keys]
        return {name: change for changes in below for name, change in changes.items()}
    return {} if before == after else {prefix.removesuffix("."): (before, after)}
