"""Folders of pictures as `datasets` tables: class folders, splits, metadata files with captions, or plain pictures.

The `imagefolder` loader of `datasets` guesses splits from any file or class name that contains "train" or "test", drops
pictures without a warning and fails on names with glob characters. The rules here are fewer, what does not fit them is
an error, and what is passed over is counted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from wvq.checks import locale_fault
from wvq.data.captions import Notes, joined
from wvq.data.inventory import NAMED, Inventory, first_names, shown
from wvq.data.listing import Listing, list_folder, walk
from wvq.data.metadata import Row, metadata_files
from wvq.data.split_names import SPLITS, split_of_folder
from wvq.data.tables import class_order
from wvq.distributed import is_main_process
from wvq.errors import DataError, first_line

NO_PICTURES = "no pictures (files that Pillow opens, such as .png, .jpg or .webp)"


@dataclass
class _Part:
    """One split.

    Attributes:
        top: its folder.
        below: the folders in it by name, each with all that lie below.
        rows: the pictures that its metadata file lists, if it has one.
        classes: whether its folders may be classes.
    """

    top: Listing
    below: dict[str, list[Listing]]
    rows: list[Row]
    classes: bool

    @property
    def listings(self) -> list[Listing]:
        return [self.top, *(listing for listings in self.below.values() for listing in listings)]

    def class_folders(self) -> dict[str, bool]:
        """The folders that may be classes, and whether each has pictures."""
        if not self.classes or self.rows:
            return {}
        return {name: any(listing.pictures for listing in listings) for name, listings in self.below.items()}


def read_folder(folder: str | Path, layout: str | None, inventory: Inventory) -> datasets.DatasetDict:
    """Read a folder of pictures; only paths are held, pictures are decoded on access.

    Layouts, first match wins:
        - a metadata file (:mod:`wvq.data.metadata`): the pictures listed there;
        - sub-folders that are all named after splits (``train``, ``val``, ``test``; in any case, and
          :data:`wvq.data.split_names.SPLIT_NAMES`): one split each, every one in one of the other layouts; without such
          sub-folders all is the split ``train``;
        - class folders: the class is the first folder's name, pictures may lie deeper; ids follow
          :func:`wvq.data.tables.class_order`, and each class has pictures in at least one split: a folder without any
          is an error, so that no class is lost;
        - pictures only: no classes.

    A folder that is alone and holds only folders stands for what is in it. Captions come from metadata files, and from
    a text beside each picture.

    Args:
        folder: the folder.
        layout: what its sub-folders are, see :class:`wvq.settings.data.DataConfig`; metadata files then give captions
            and leave no picture out.
        inventory: receives how the folder was understood, and what was passed over.

    Returns:
        Splits with a column ``image`` and, by layout, ``label`` (ClassLabel) or the fields of the metadata.

    Raises:
        DataError: no pictures, a class without pictures, a layout that can be understood in two ways, or a metadata
            file that is malformed or names a missing file.
    """
    notes = Notes(inventory)
    top = _entered(list_folder(folder), layout, notes)
    rows = notes.listed(top) if layout is None else []
    folders = {} if rows else _split_folders(top, layout, inventory)
    if folders:
        tops = {split: list_folder(os.path.join(top.path, name)) for split, name in folders.items()}
        parts = {split: _part(inner, notes.listed(inner), None, inventory) for split, inner in tops.items()}
    else:
        parts = {"train": _part(top, rows, layout, inventory)}
    listings = [top] if folders else []
    listings += [listing for part in parts.values() for listing in part.listings]
    notes.add_below(listings)
    class_names = _class_names(list(parts.values()))
    splits = {
        split: _listed(part, notes) if part.rows else _laid_out(part, class_names, layout, bool(folders), notes)
        for split, part in parts.items()
    }
    notes.pass_over_rest(listings)
    return datasets.DatasetDict(splits)


def _entered(top: Listing, layout: str | None, notes: Notes) -> Listing:
    """The folder that holds the layout: a folder that is alone and holds only folders is entered."""
    visited = set()
    while layout in (None, "splits") and len(top.folders) == 1 and not top.pictures and not metadata_files(top.others):
        (name,) = top.folders
        inner = list_folder(os.path.join(top.path, name))
        if split_of_folder(name) or inner.pictures or not inner.folders or os.path.realpath(inner.path) in visited:
            break
        visited.add(os.path.realpath(inner.path))
        notes.pass_over_rest([top])
        notes.inventory.remark(f"read within {shown(name)}/, which is alone and holds folders")
        top = inner
    return top


def _split_folders(top: Listing, layout: str | None, inventory: Inventory) -> dict[str, str]:
    """Names of the folders that are splits, by split; none if the folders are something else."""
    if layout in ("classes", "plain"):
        return {}
    by_split = {split: [name for name in top.folders if split_of_folder(name) == split] for split in SPLITS}
    by_split = {split: names for split, names in by_split.items() if names}
    if not by_split:
        if layout == "splits":
            raise DataError(
                f"{top.path} has no folder named after a split, such as train, val or test; leave layout out"
            )
        return {}
    named = [name for names in by_split.values() for name in names]
    others = {name: list(walk(os.path.join(top.path, name))) for name in top.folders if name not in named}
    filled = [name for name, listings in others.items() if any(listing.pictures for listing in listings)]
    inner = [list_folder(os.path.join(top.path, name)) for name in named]
    of_classes = any(listing.folders and not listing.pictures for listing in inner)
    if layout is None and filled and len(by_split) == 1 and not of_classes:
        inventory.remark(f"{first_names(named)} {'is a class' if len(named) == 1 else 'are classes'} and no split")
        return {}
    if layout is None and (doubt := _doubt(top, named, filled)):
        raise DataError(f"{top.path}: {doubt}")
    if two := next((names for names in by_split.values() if len(names) > 1), None):
        raise DataError(f"{top.path} has two folders for one split: {', '.join(two)}; keep one of them")
    inventory.remark(", ".join(f"{split} in {shown(names[0])}/" for split, names in by_split.items()))
    for listing in (top, *(listing for name in filled for listing in others[name])):
        _leave_out(listing, "pictures outside of the splits", inventory)
    for listing in (listing for name in others if name not in filled for listing in others[name]):
        for name in listing.others:
            inventory.pass_over(name)
    return {split: names[0] for split, names in by_split.items()}


def _doubt(top: Listing, named: list[str], filled: list[str]) -> str | None:
    """Two ways to understand folders of which some are named after splits; None if there is one.

    Args:
        top: the folder that holds them.
        named: those named after splits.
        filled: the others that hold pictures.
    """
    splits = " and ".join(f"{shown(name)}/" for name in named)
    if filled:
        return (
            f"{splits} {'is' if len(named) == 1 else 'are'} named like splits, {first_names(filled)} not: with "
            "--data.layout splits the rest is left out, with --data.layout classes all are classes"
        )
    if top.pictures:
        return (
            f"{first_names(top.pictures)} beside {splits}: with --data.layout splits the pictures outside of these are "
            "left out, with --data.layout plain all pictures are one set without classes"
        )
    return None


def _part(top: Listing, rows: list[Row], layout: str | None, inventory: Inventory) -> _Part:
    below = {name: list(walk(os.path.join(top.path, name))) for name in top.folders}
    # As img2dataset writes files: folders of so many pictures each, which mean nothing.
    shards = bool(top.folders) and all(f"{name}_stats.json" in top.others for name in top.folders)
    if shards and layout is None:
        inventory.remark("numbered folders are parts and no classes")
    return _Part(top, below, rows, classes=layout != "plain" and not (shards and layout is None))


def _class_names(parts: Sequence[_Part]) -> list[str]:
    """Names of the folders with pictures in any split. Raises DataError if others lie beside them."""
    folders = [(name, filled, part.top.path) for part in parts for name, filled in part.class_folders().items()]
    names = {name for name, filled, _ in folders if filled}
    empty = next((os.path.join(path, name) for name, _, path in folders if name not in names), None)
    if names and empty:
        raise DataError(f"{shown(empty)} lies among class folders but holds {NO_PICTURES}: fill it or remove it")
    return class_order(names)


def _laid_out(
    part: _Part, class_names: list[str], layout: str | None, in_split: bool, notes: Notes
) -> datasets.Dataset:
    """The pictures of class folders, or plain ones, with what is said about each."""
    if class_names and part.classes and part.top.pictures:
        if layout != "classes":
            raise DataError(_loose_pictures(part.top, class_names, in_split))
        _leave_out(part.top, "pictures beside the class folders", notes.inventory)
    if not class_names or not part.classes:
        pictures = [path for listing in part.listings for path in listing.picture_paths()]
        if not pictures:
            raise DataError(f"{part.top.path} holds {NO_PICTURES} and no metadata.jsonl")
        return _table(pictures, [notes.about(path) for path in pictures], part.top.path)
    ids = {name: label for label, name in enumerate(class_names)}
    by_folder = {  # the order of the pictures is that of the texts, whatever their ids
        name: [path for listing in listings for path in listing.picture_paths()]
        for name, listings in part.below.items()
    }
    pictures = [path for paths in by_folder.values() for path in paths]
    if not pictures:
        raise DataError(f"{part.top.path} holds {NO_PICTURES}")
    labels = [ids[name] for name, paths in by_folder.items() for _ in paths]
    return _table(pictures, [notes.about(path) for path in pictures], part.top.path, labels, class_names)


def _loose_pictures(top: Listing, class_names: list[str], in_split: bool) -> str:
    problem = (
        f"{shown(top.picture_paths()[0])} lies beside class folders ({first_names(class_names)}): move it into one of "
        "them, or the folders elsewhere"
    )
    if in_split:
        return problem
    return (
        f"{problem}; or say what they are: with --data.layout classes the {len(top.pictures):,} beside them are left "
        "out, with --data.layout plain all pictures are one set without classes"
    )


def _listed(part: _Part, notes: Notes) -> datasets.Dataset:
    """The pictures that a metadata file lists, in its order, with what else is said about them."""
    keys = [os.path.normpath(row.picture) for row in part.rows]
    rows = [
        joined(row, notes.rows[key]) if key in notes.rows else row for key, row in zip(keys, part.rows, strict=True)
    ]
    notes.rows |= zip(keys, rows, strict=True)
    file, named = part.rows[0].file, set(keys)
    left_out = [
        path for listing in part.listings for path in listing.picture_paths() if os.path.normpath(path) not in named
    ]
    for path in left_out:
        notes.inventory.pass_over(os.path.basename(path), "pictures that the metadata does not name")
    if left_out and is_main_process():
        names = ", ".join(shown(os.path.relpath(path, part.top.path)) for path in left_out[:NAMED])
        warnings.warn(
            f"{len(left_out):,} of {len(left_out) + len(named):,} pictures are not named in {file} and are left out, "
            f"such as {names}",
            stacklevel=2,
        )
    folders = [name for name, listings in part.below.items() if any(listing.pictures for listing in listings)]
    if len(folders) > 1 and not any("label" in row.fields for row in rows):
        notes.inventory.remark(f"{first_names(folders)} are no classes beside {os.path.basename(file)} (data.layout)")
    return _table([row.picture for row in rows], [row.fields for row in rows], file)


def _leave_out(listing: Listing, kind: str, inventory: Inventory) -> None:
    for name in listing.pictures:
        inventory.pass_over(name, kind)


def _table(
    pictures: list[str],
    fields: list[dict[str, object]],
    origin: str,
    labels: list[int] | None = None,
    class_names: list[str] | None = None,
) -> datasets.Dataset:
    """Pictures by their paths, with their classes and what is said about each."""
    for name in (*(class_names or ()), *pictures):
        _require_utf8(name)
    columns: dict[str, list[Any]] = {"image": pictures}
    if labels is not None:
        columns["label"] = labels
    more = dict.fromkeys(name for row in fields for name in row if name not in columns)
    columns |= {name: [row.get(name) for row in fields] for name in more}
    try:
        table = datasets.Dataset.from_dict(columns)  # faster without features, which are cast to afterwards
    except (TypeError, ValueError) as error:
        raise DataError(f"{origin} mixes types in one field: {first_line(error)}") from None
    if class_names:
        table = table.cast_column("label", datasets.ClassLabel(names=class_names))
    return table.cast_column("image", datasets.Image())


def _require_utf8(name: str) -> None:
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            fault = locale_fault(name) or (
                "this name is not UTF-8 text, as tables of pictures need; rename it, or all of them by "
                "convmv -f latin1 -t utf8 -r --notest FOLDER"
            )
            raise DataError(f"{shown(name)}: {fault}") from None
