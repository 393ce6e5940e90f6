"""Which pictures of a data set are held out, and whether two uses of it hold out the same ones."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from wvq.data.tables import PictureTable
from wvq.errors import DataError
from wvq.files.names import RECIPE_NAME
from wvq.files.stage_folder import read_recipe
from wvq.files.user_folders import expand_user
from wvq.settings.data import DataConfig

# Fields of DataConfig that decide which pictures are held out.
_OF_THE_SPLIT = (
    *("subset", "train_split", "validation_split", "validation_fraction", "label_column", "classes", "seed"),
    "stream",  # of which whole shards are held out
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
            f"validation_fraction: nothing can be held out of {len(table)} pictures in {len(class_names)} "
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


def other_split(folder: str | Path, data: DataConfig) -> str | None:
    """A warning if the run in ``folder`` read the same data and held out other pictures of it; None if not.

    What is held out here may then be what that run was trained on.

    Raises:
        ConfigError: the run's recipe cannot be read.
    """
    file = Path(folder) / RECIPE_NAME
    if not file.is_file():
        return None
    before = read_recipe(file).get("data")
    if not isinstance(before, dict) or _place(before.get("path")) != _place(data.path):
        return None
    before = {"stream": False} | before  # earlier versions read no streams
    for name in _OF_THE_SPLIT:
        if name in before and before[name] != getattr(data, name):
            return (
                f"{folder} was trained with data.{name} {before[name]} and here it is {getattr(data, name)}: pictures "
                f"that count as held out may have been trained on; set --data.{name} {before[name]}"
            )
    return None


def _place(path: object) -> object:
    """A folder or file by its one whole path; any other source, such as a Hub id, as it is."""
    return expand_user(path).resolve() if isinstance(path, str) and path and expand_user(path).exists() else path
