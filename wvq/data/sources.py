"""Where pictures come from: the built-in set, a folder, parquet or the Hub, each as `datasets` splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import datasets

from wvq.data.folders import read_folder
from wvq.data.inventory import Inventory
from wvq.data.listing import Listing, look
from wvq.data.openmoji import load_openmoji
from wvq.data.parquet import PARQUET, holds_parquet, read_parquet_file, read_parquet_folder
from wvq.data.pixels import largest_resize
from wvq.data.shard_rows import rows_at_rest
from wvq.data.shards import HUB_ID, find_shards
from wvq.errors import DataError, DownloadError, first_line
from wvq.files.user_folders import expand_user
from wvq.settings.data import DataConfig


def read_source(config: DataConfig, inventory: Inventory) -> datasets.DatasetDict:
    """The splits of ``config.path``, with pictures not yet decoded.

    ``openmoji`` is the built-in set. Tar shards (:func:`wvq.data.shards.find_shards`) become tables on disk. Another
    path that exists is read from disk: a folder that holds parquet files as parquet, another folder as pictures. Any
    other name that could be a Hub id is taken as one.

    Args:
        config: where the pictures are.
        inventory: receives how the source was understood, and what was passed over.

    Raises:
        ConfigError: ``layout`` for what is neither a folder nor a pattern.
        DataError: no such file or folder, nothing readable in it, or a Hub data set that needs ``subset``.
        DownloadError: the Hub cannot be reached or has no such data set.
    """
    path = expand_user(config.path, "data.path")
    # A folder may hold a million pictures: it is looked at once for tar and parquet files.
    seen = look(path) if config.path != "openmoji" and os.path.isdir(path) else None
    shards = find_shards(config, inventory, seen)
    if config.path == "openmoji":
        size = max(72, *largest_resize(config.size, config.min_crop_fraction, config.crop_scales or ()))
        return datasets.DatasetDict({"train": load_openmoji(size)})
    if shards is not None:
        count = sum(map(len, shards.splits.values()))
        inventory.remark(f"{count:,} tar file{'s' if count > 1 else ''}")
        return rows_at_rest(shards, config)
    if config.path and os.path.exists(path):  # of a name that is too long pathlib raises an error
        return _read_path(path, seen, config, inventory)
    if not HUB_ID.fullmatch(config.path) or config.path.lower().endswith(PARQUET):
        raise DataError(f"data.path: {config.path!r} is no file or folder (and no Hub id such as owner/name)")
    return _read_hub(config.path, config.subset)


def _read_path(
    path: Path, seen: Sequence[Listing] | None, config: DataConfig, inventory: Inventory
) -> datasets.DatasetDict:
    if path.is_dir():
        if holds_parquet(path, config.image_column, seen):
            return read_parquet_folder(path, config.layout, inventory)
        return read_folder(path, config.layout, inventory)
    if not path.is_file():
        raise DataError(f"data.path: {path} is neither a file nor a folder")
    if path.suffix.lower() != PARQUET:
        raise DataError(f"data.path: {path} is a file and not parquet; give a folder or a .parquet file")
    return read_parquet_file(path)


# Nothing that comes with a data set is run: `datasets` has known no loading scripts since 4.0, and no option for them.


def _read_hub(name: str, subset: str | None) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, subset)
    except ValueError as error:
        # An unknown or missing configuration: the message of `datasets` lists those that exist.
        raise DataError(f"data.subset: {name} does not have {subset!r}: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"data.path: {name!r} is no folder here, and the Hub data set of this name cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}); check the id, the network and HF_HUB_OFFLINE"
        ) from error
