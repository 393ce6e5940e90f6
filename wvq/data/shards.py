"""Which shards a path names, and the split that each belongs to: tar files in the form of WebDataset, or parquet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import datasets
from huggingface_hub import HfApi

from wvq.errors import DataError, DownloadError, first_line
from wvq.files.user_folders import expand_user
from wvq.settings.data import DataConfig

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
URL = re.compile(r"[a-z][a-z0-9]*://")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
KINDS = ("tar", "parquet")  # the latter only as streams: at rest they are read by other means
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NAMES = "|".join(sorted(_SPLITS, key=len, reverse=True))
# `train`, `train-00000-of-00003`, and as mirrors of ImageNet have it `imagenet1k-train-0000`.
_SPLIT = re.compile(rf"({_NAMES})(?:[-_.\d].*)?|.*[-_.]({_NAMES})(?:[-_.]?\d+)(?:[-_.]of[-_.]\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Shards:
    """The shards of a data set.

    Attributes:
        kind: ``tar`` or ``parquet``.
        splits: paths or addresses in order, by split.
    """

    kind: str
    splits: dict[str, tuple[str, ...]]


def find_shards(config: DataConfig) -> Shards | None:
    """The shards that ``config.path`` names: tar files, or parquet files too where they are to be streamed.

    Returns:
        None if it names something else.

    Raises:
        DataError: a shard that is missing, a stream of something else, or some files that are named after a split and
            others that are not.
        DownloadError: a Hub id that is to be streamed and cannot be reached.
    """
    path, local = config.path, expand_user(config.path)
    if path and local.exists():
        names = [str(local)] if local.is_file() else _files_in(local)
        found = _shards(config, names, f"{local}/")
    elif URL.match(path) or _BRACES.search(path):
        names = [name if URL.match(name) else str(expand_user(name)) for name in expand_braces(path)]
        if missing := next((name for name in names if not URL.match(name) and not Path(name).is_file()), None):
            raise DataError(f"path: {missing}, which {path} names, does not exist")
        found = _shards(config, names)
    else:
        found = _shards_of_hub(config) if HUB_ID.fullmatch(path) and path != "openmoji" else None
    if config.stream and found is None:
        raise DataError(f"data.stream: {path!r} holds no .tar and no .parquet files to stream; leave stream out")
    return found


def _shards(config: DataConfig, names: list[str], root: str = "") -> Shards | None:
    """Those of some files that are shards, by the splits that their names behind ``root`` say."""
    for kind in KINDS if config.stream else KINDS[:1]:
        if chosen := [name for name in names if name.lower().endswith(f".{kind}")]:
            return Shards(kind, _by_split(chosen, root))
    return None


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern stands for: ``{000..099}`` for numbers of as many digits, ``{a,b}`` for names."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last, names = match.groups()
    parts = names.split(",") if names else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    rests = expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + part + rest for part in parts for rest in rests]


def split_of(name: str) -> str | None:
    """The split that a file belongs to by its name, or by that of its folder; None if neither says so."""
    *folders, file = name.split("/")
    if match := _SPLIT.fullmatch(file.rsplit(".", 1)[0]):
        return _SPLITS[(match[1] or match[2]).lower()]
    return _SPLITS.get(folders[-1].lower()) if folders else None


def _by_split(names: list[str], root: str) -> dict[str, tuple[str, ...]]:
    splits: dict[str | None, list[str]] = {}
    for name in names:
        splits.setdefault(split_of(name.removeprefix(root)), []).append(name)
    others = splits.pop(None, [])
    if others and splits:
        split, files = next(iter(splits.items()))
        raise DataError(
            f"path: {files[0]} is of the split {split} by its name, and {others[0]} of none: rename the one or the "
            "other, or give a pattern such as train-{0000..0099}"
        )
    return {split or "train": tuple(files) for split, files in splits.items()} or {"train": tuple(others)}


def _files_in(folder: Path) -> list[str]:
    """Files of a folder and of the folders in it, in order; hidden ones, as ``_SUCCESS`` is, are none."""
    names = []
    for child in sorted(folder.iterdir()):
        if not child.name.startswith((".", "_")):
            inner = sorted(child.iterdir()) if child.is_dir() else [child]
            names += [str(file) for file in inner if not file.name.startswith((".", "_")) and file.is_file()]
    return names


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
        raise DataError(f"subset: {name} does not have {config.subset!r}: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        if not config.stream:
            return None  # `datasets` may have it in its cache
        raise DownloadError(
            f"path: {name!r} is no folder here, and the Hub data set of this name cannot be asked for its files "
            f"({type(error).__name__}: {first_line(error)}); check the id, the network and HF_HUB_OFFLINE"
        ) from error
    for kind in KINDS if config.stream else KINDS[:1]:
        if splits and all(file.lower().endswith(f".{kind}") for files in splits.values() for file in files):
            return Shards(kind, {str(split): tuple(files) for split, files in splits.items()})
    return None
