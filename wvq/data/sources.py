"""Where pictures come from: the built-in set, a folder, parquet or the Hub, each as `datasets` splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from wvq.data.folders import read_folder
from wvq.data.openmoji import load_openmoji
from wvq.data.pixels import largest_resize
from wvq.data.shard_rows import rows_at_rest
from wvq.data.shards import HUB_ID, find_shards
from wvq.errors import DataError, DownloadError, first_line
from wvq.files.user_folders import expand_user
from wvq.settings.data import DataConfig


def read_source(config: DataConfig) -> datasets.DatasetDict:
    """The splits of ``config.path``, with pictures not yet decoded.

    ``openmoji`` is the built-in set. Tar shards (:func:`wvq.data.shards.find_shards`) become tables on disk. Another
    path that exists is read from disk: a folder that holds parquet files as parquet, another folder as pictures. Any
    other name that could be a Hub id is one.

    Raises:
        DataError: no such file or folder, nothing readable in it, or a Hub data set that needs ``subset``.
        DownloadError: the Hub cannot be reached or has no such data set.
    """
    if config.path == "openmoji":
        size = max(72, largest_resize(config.image_size, config.min_crop_fraction, config.crop_scales or ()))
        return datasets.DatasetDict({"train": load_openmoji(size)})
    if (shards := find_shards(config)) is not None:
        return rows_at_rest(shards, config)
    path = expand_user(config.path)
    if config.path and path.exists():
        return _read_path(path)
    if not HUB_ID.fullmatch(config.path) or config.path.endswith(".parquet"):
        raise DataError(f"path: {config.path!r} is no file or folder (and no Hub id such as owner/name)")
    return _read_hub(config.path, config.subset)


def _read_path(path: Path) -> datasets.DatasetDict:
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"path: {path} is a file but not parquet; give a folder of pictures or a .parquet file")
        return _read_parquet(path, data_files={"train": str(path)})
    # No deeper: a folder of a million pictures would be walked for nothing.
    if any(next(path.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")):
        return _read_parquet(path, data_dir=str(path))
    return read_folder(path)


# Nothing that comes with a data set is run: `datasets` has known no loading scripts since 4.0, and no option for them.


def _read_parquet(path: Path, **where: Any) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset("parquet", **where)
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise DataError(f"{path} cannot be read as parquet: {first_line(cause)}") from error


def _read_hub(name: str, subset: str | None) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, subset)
    except ValueError as error:
        # An unknown or missing configuration: the message of `datasets` lists those that exist.
        raise DataError(f"subset: {name} does not have {subset!r}: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"path: {name!r} is no folder here, and the Hub data set of this name cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}); check the id, the network and HF_HUB_OFFLINE"
        ) from error
