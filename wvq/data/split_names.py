"""Which names of files and folders are those of a split, and which files a data set of several files has in each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from wvq.data.inventory import Inventory, first_names
from wvq.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
SPLITS = tuple(dict.fromkeys(SPLIT_NAMES.values()))
_PREFIX = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?=$|[-_.\d])")
_NUMBERED = re.compile(rf".*[-_.]({'|'.join(SPLIT_NAMES)})[-_.]?\d+(?:[-_.]of[-_.]\d+)?")
_TOKEN = re.compile(r"[^a-z]+")


def split_of_folder(name: str) -> str | None:
    """The split that a folder's name stands for, in any case; None if for none."""
    return SPLIT_NAMES.get(name.lower())


def split_of(name: str) -> str | None:
    """The split of a file by its path in the data set; None if no name in it is that of a split.

    The file's name is one of ``SPLIT_NAMES`` in any case, or begins with it and ``-``, ``_``, ``.`` or a digit
    (``train-00000-of-00003.parquet``), or ends in it and a number, as shards of ImageNet do
    (``imagenet1k-train-0000.tar``); or one of its folders has such a name.
    """
    path = PurePath(name)
    if match := _PREFIX.match(path.name.lower()) or _NUMBERED.fullmatch(path.stem.lower()):
        return SPLIT_NAMES[match[1]]
    return next(filter(None, (split_of_folder(part) for part in reversed(path.parent.parts))), None)


def split_files(names: Sequence[str], layout: str | None, inventory: Inventory) -> dict[str, list[str]]:
    """The files of each split; all are for training if no name says otherwise.

    Args:
        names: paths of the files in the data set.
        layout: where only some are named after a split: ``splits`` leaves out the others, ``plain`` takes all of them
            for training; None refuses to choose.
        inventory: receives which files were taken as which split, and which are left out.

    Raises:
        DataError: only some are named after a split, or several splits are named at other places of the names.
    """
    splits: dict[str, list[str]] = {}
    for name in sorted(names):
        if layout != "plain" and (split := split_of(name)):
            splits.setdefault(split, []).append(name)
    named = {name for files in splits.values() for name in files}
    others = [name for name in sorted(names) if name not in named]
    if not splits:
        _refuse_other_places(others, layout)
        return {"train": others}
    splits = {split: splits[split] for split in SPLITS if split in splits}
    taken = "; ".join(f"{split}: {first_names(files)}" for split, files in splits.items())
    if others and layout != "splits":
        raise DataError(
            f"{first_names(others)} {'is' if len(others) == 1 else 'are'} named after no split, beside files that are "
            f"({taken}): --data.layout splits leaves {'it' if len(others) == 1 else 'them'} out, --data.layout plain "
            f"takes all {len(names):,} files for training"
        )
    inventory.remark(taken)
    for name in others:
        inventory.pass_over(name)
    return splits


def _refuse_other_places(names: list[str], layout: str | None) -> None:
    """Refuse ``pets-train`` beside ``pets-test``: read as one set, the test pictures would be trained on."""
    found = {
        SPLIT_NAMES[token]: name
        for name in names
        for token in _TOKEN.split(PurePath(name).stem.lower())
        if token in SPLIT_NAMES
    }
    if layout is None and "train" in found and len(found) > 1:
        raise DataError(
            f"{' and '.join(found.values())} seem to be splits, but only names that begin with train, validation or "
            "test, or end in one of them and a number, count as such: rename the files, or take all of them for "
            "training with --data.layout plain"
        )
