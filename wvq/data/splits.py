"""Whether two uses of one data set hold out the same pictures."""

from __future__ import annotations

from pathlib import Path

from wvq.files.names import RECIPE_NAME
from wvq.files.stage_folder import read_recipe
from wvq.settings.data import DataConfig

_OF_THE_SPLIT = ("subset", "train_split", "validation_split", "validation_fraction", "label_column", "classes", "seed")


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
    for name in _OF_THE_SPLIT:
        if name in before and before[name] != getattr(data, name):
            return (
                f"{folder} was trained with data.{name} {before[name]} and here it is {getattr(data, name)}: pictures "
                f"that count as held out may have been trained on; set --data.{name} {before[name]}"
            )
    return None


def _place(path) -> str | Path | None:
    return Path(path).resolve() if isinstance(path, str) and path and Path(path).exists() else path
