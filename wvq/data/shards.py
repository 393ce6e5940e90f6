"""Which shards a path names, and the split that each belongs to: tar files in the form of WebDataset, or parquet."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import datasets
from huggingface_hub import HfApi

from wvq.data.inventory import Inventory
from wvq.data.listing import Listing, is_shard, look, walk
from wvq.data.split_names import split_files
from wvq.errors import ConfigError, DataError, DownloadError, first_line
from wvq.files.user_folders import expand_user
from wvq.settings.data import DataConfig

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
URL = re.compile(r"[a-z][a-z0-9]*://")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
KINDS = ("tar", "parquet")  # the latter only as streams: at rest they are read by other means


@dataclass(frozen=True)
class Shards:
    """The shards of a data set.

    Attributes:
        kind: ``tar`` or ``parquet``.
        splits: paths or addresses in order, by split.
    """

    kind: str
    splits: dict[str, tuple[str, ...]]


def find_shards(config: DataConfig, inventory: Inventory, seen: Sequence[Listing] | None = None) -> Shards | None:
    """The shards that ``config.path`` names: tar files, or parquet files too where they are to be streamed.

    Files of a folder or a pattern are of the splits that :func:`wvq.data.split_names.split_files` says; a single file
    is for training.

    Args:
        config: where the data are.
        inventory: receives which files were taken as which split, and what was passed over.
        seen: what :func:`wvq.data.listing.look` saw in the folder, if it has looked already.

    Returns:
        None if it names something else.

    Raises:
        ConfigError: ``layout`` for what is neither a folder nor a pattern.
        DataError: a shard that is missing, a stream of something else, or names that leave a doubt about the splits.
        DownloadError: a Hub id that is to be streamed and cannot be reached.
    """
    path, local = config.path, expand_user(config.path, "data.path")
    built_in, is_pattern = path == "openmoji", _BRACES.search(path) is not None
    if config.layout is not None and (built_in or not (os.path.isdir(local) or is_pattern)):
        raise ConfigError(f"data.layout says what the folders of a path are, and {path!r} is no folder here")
    if built_in:
        shards = None
    elif os.path.isdir(local):
        shards = _shards_in(local, look(local) if seen is None else seen, config, inventory)
    elif os.path.exists(local):
        kind = next((kind for kind in _kinds(config) if is_shard(str(local), kind)), None)
        shards = None if kind is None else Shards(kind, {"train": (str(local),)})
    elif URL.match(path) or is_pattern:
        shards = _shards_of_pattern(expand_braces(path if URL.match(path) else str(local)), config, inventory)
    else:
        shards = _shards_of_hub(config) if HUB_ID.fullmatch(path) else None
    if config.stream and shards is None:
        raise DataError(f"data.stream: {path!r} holds no .tar and no .parquet files to stream; leave stream out")
    return shards


def _shards_in(folder: Path, seen: Sequence[Listing], config: DataConfig, inventory: Inventory) -> Shards | None:
    """The shards of a folder. An archive among pictures is none, unless a stream is wanted."""
    num_tars = sum(is_shard(name, "tar") for listing in seen for name in listing.others)
    num_pictures = sum(len(listing.pictures) for listing in seen)
    if not config.stream and (not num_tars or num_pictures > num_tars):
        return None
    listings = list(walk(folder))
    names = [os.path.join(listing.path, name) for listing in listings for name in listing.others]
    shards = _shards(names, len(os.path.join(folder, "")), config, inventory)
    if shards is not None:
        for name in (name for listing in listings for name in (*listing.pictures, *listing.others)):
            if not is_shard(name, shards.kind):
                inventory.pass_over(name)
    return shards


def _shards_of_pattern(names: list[str], config: DataConfig, inventory: Inventory) -> Shards | None:
    if missing := next((name for name in names if not URL.match(name) and not os.path.isfile(name)), None):
        raise DataError(f"data.path: {missing}, which {config.path} names, does not exist")
    folders = zip(*(name.split("/")[:-1] for name in names), strict=False)
    common = takewhile(lambda parts: len(set(parts)) == 1, folders)  # folders that hold all of them
    return _shards(names, sum(len(parts[0]) + 1 for parts in common), config, inventory)


def _shards(names: list[str], start: int, config: DataConfig, inventory: Inventory) -> Shards | None:
    """Those of some files that are shards, by what their names say from a place on."""
    kind = next((kind for kind in _kinds(config) if any(is_shard(name, kind) for name in names)), None)
    if kind is None:
        return None
    chosen = [name for name in names if is_shard(name, kind)]
    if config.layout == "classes":
        raise DataError(f"{chosen[0]} is a {kind} file, which has no class folders: leave data.layout out")
    splits = split_files([name[start:] for name in chosen], config.layout, inventory)
    split_of = {name: split for split, files in splits.items() for name in files}
    # In the order in which they were given.
    return Shards(
        kind, {split: tuple(name for name in chosen if split_of.get(name[start:]) == split) for split in splits}
    )


def _kinds(config: DataConfig) -> tuple[str, ...]:
    return KINDS if config.stream else KINDS[:1]


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern stands for: ``{000..099}`` for numbers of as many digits, ``{a,b}`` for names."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last, names = match.groups()
    parts = names.split(",") if names else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    rests = expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + part + rest for part in parts for rest in rests]


def _shards_of_hub(config: DataConfig) -> Shards | None:
    """The shards of a data set on the Hub, by the splits that it has there; none if it cannot be asked and need not be.

    Raises:
        DataError: it needs ``subset``.
        DownloadError: it is to be streamed, and cannot be reached.
    """
    name = config.path
    try:
        if not config.stream:  # all but tar files are read by `datasets` as they are
            files = HfApi().dataset_info(name).siblings or ()
            if not any(file.rfilename.lower().endswith(".tar") for file in files):
                return None
        splits = datasets.load_dataset_builder(name, config.subset).config.data_files or {}
    except ValueError as error:
        message = " ".join(str(error).split())
        raise DataError(f"data.subset: {name} does not have {config.subset!r}: {message}") from error
    except (OSError, RuntimeError) as error:
        if not config.stream:
            return None  # `datasets` may have it in its cache
        raise DownloadError(
            f"data.path: {name!r} is no folder here, and the Hub data set of this name cannot be asked for its files "
            f"({type(error).__name__}: {first_line(error)}); check the id, the network and HF_HUB_OFFLINE"
        ) from error
    for kind in _kinds(config):
        if splits and all(file.lower().endswith(f".{kind}") for files in splits.values() for file in files):
            return Shards(kind, {str(split): tuple(files) for split, files in splits.items()})
    return None
