"""Which pictures of a data set are held out, and whether two uses of it hold out the same ones."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from wvq.data.tables import PictureTable
from wvq.errors import ConfigError, DataError
from wvq.files.fingerprint import DataFingerprint, changed_data, changed_pictures, mixed_pictures, same_pictures
from wvq.files.names import RECIPE_NAME
from wvq.files.stage_folder import read_recipe
from wvq.files.user_folders import expand_user
from wvq.settings.data import DataConfig

# Fields of DataConfig that decide which pictures are held out.
_OF_THE_SPLIT = (
    "subset",
    "layout",
    "stream",  # of which whole shards are held out
    "train_split",
    "validation_split",
    "validation_fraction",
    "label_column",
    "classes",
    "seed",
)


def hold_out(table: PictureTable, class_names: tuple[str, ...], fraction: float, seed: int) -> np.ndarray:
    """Choose the held-out pictures: ``fraction`` of every class, whole groups, at least one picture in all.

    The choice within a class depends on the seed, the class's name and its pictures only. Every class keeps a picture
    for training, and a group larger than its class's held-out share stays in training.

    Returns:
        bool (N,), True for held-out pictures.

    Raises:
        DataError: no picture can be held out.
    """
    labels = np.asarray(table.labels if table.labels is not None else np.full(len(table), -1))
    groups = np.unique(table.groups, return_inverse=True)[1] if table.groups is not None else np.arange(len(table))
    # A picture's place in its class, in (0, 1): those below `fraction` are held out; inf never is.
    places = np.full(len(table), np.inf)
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(table) else []:
        label = labels[members[0]]
        name = class_names[label] if label >= 0 else ""
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        places[members] = _places(groups[members], fraction, rng)
    if not np.isfinite(places).any():
        raise DataError(
            f"data.validation_fraction: nothing can be held out of {len(table)} pictures in {len(class_names)} "
            "classes; give more pictures of a class"
        )
    return (places < fraction) | (places == places.min())


def _places(groups: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    stays = sizes > max(1, fraction * len(groups))
    order = rng.permutation(len(sizes))
    order = order[np.argsort(stays[order], kind="stable")]
    stays[order[-1]] = True
    starts = np.empty(len(sizes))
    starts[order] = np.cumsum(sizes[order]) - sizes[order]
    # The random offset rounds a class's share up or down with the right odds: small classes are not all skipped.
    places = (starts + rng.random()) / len(groups)
    places[stays] = np.inf
    return places[group_of]


def check_pictures(
    before: DataFingerprint | None,
    now: DataFingerprint | None,
    run: str | Path,
    data: DataConfig | None,
    resumed: bool = False,
) -> list[str]:
    """Compare the pictures of a stage with those of the run that it goes on from.

    Args:
        before: the fingerprint of that run.
        now: the fingerprint of the stage's own data. If either is None, recipes are compared.
        run: what messages call the run: its folder or Hub id.
        data: the stage's settings; None if it reads codes.
        resumed: whether the stage is the same run, resumed: then pictures must not pass from held out to trained on
            either.

    Returns:
        Warnings: training pictures are new or gone, or held-out ones were trained on and ``data`` accepts it.

    Raises:
        ConfigError: held-out pictures were trained on.
    """
    changed = None if before is None or now is None else changed_pictures(before, now)
    lines = [changed and f"{run} was trained on other pictures: {changed}"]
    lines.append(check_held_out(before, now, run, data, resumed))
    return [line for line in lines if line]


def check_held_out(
    before: DataFingerprint | None,
    now: DataFingerprint | None,
    run: str | Path,
    data: DataConfig | None,
    resumed: bool = False,
) -> str | None:
    """The part of :func:`check_pictures` that is on held-out pictures; returns the warning, if there is one.

    Raises:
        ConfigError: held-out pictures were trained on.
    """
    if before is None or now is None:
        # Recipes show the settings alone: what is held out here may be what that run was trained on.
        if data is None or (split := _other_split(run, data)) is None:
            return None
        return f"{run} was trained with {split[0]}: held-out pictures may have been trained on; {split[1]}"
    mixed = mixed_pictures(before, now, resumed)
    if mixed is None:
        return None
    if data is not None and data.ignore_mixed_split:
        return f"{run} {mixed}"
    problem = f"{run} {mixed} ({changed_data(before, now)})"
    if data is None:
        raise ConfigError(f"{problem}: restore the codes that it was started with, or start another run")
    remedy = "restore the files"
    if same_pictures(before, now):
        split = _other_split(run, data, moved=True)
        remedy = split[1] if split else "set --data.seed and what else decides the hold-out as there"
    raise ConfigError(f"{problem}: {remedy}, or accept it with --data.ignore_mixed_split true")


def _other_split(folder: str | Path, data: DataConfig, moved: bool = False) -> tuple[str, str] | None:
    """If the run in ``folder`` read the same data and held out other pictures of it: how, and the remedy.

    Args:
        folder: of the run.
        data: how the pictures are held out here.
        moved: the data are the same wherever they lie.

    Raises:
        ConfigError: the run's recipe cannot be read.
    """
    file = Path(folder) / RECIPE_NAME
    if not file.is_file():
        return None
    before = read_recipe(file).get("data")
    if not isinstance(before, dict) or not (moved or _place(before.get("path")) == _place(data.path)):
        return None
    before = {"stream": False} | before  # earlier versions read no streams
    for name in _OF_THE_SPLIT:
        if name in before and before[name] != getattr(data, name):
            now = getattr(data, name)
            return f"data.{name} {before[name]} and here it is {now}", f"set --data.{name} {before[name]}"
    return None


def _place(path: object) -> object:
    """The resolved path of a folder or file; any other source, such as a Hub id, unchanged."""
    return expand_user(path).resolve() if isinstance(path, str) and path and expand_user(path).exists() else path
