"""Folders of pictures as `datasets` tables: class folders, metadata.jsonl with captions, or plain pictures.

The `imagefolder` loader of `datasets` guesses splits from any file or class name that contains "train" or "test", drops
pictures without a warning and fails on names with glob characters. The rules here are fewer, and what does not fit them
is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import datasets

from wvq.errors import DataError, first_line
from wvq.files.reading import parse_json

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
KINDS = " ".join(sorted(PICTURE_SUFFIXES))
SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
METADATA_NAME = "metadata.jsonl"


def read_folder(folder: Path) -> datasets.DatasetDict:
    """Read a folder of pictures; only paths are held, pictures are decoded on access.

    Layouts, first match wins:
        - sub-folders named ``train`` and ``validation`` (``valid``, ``val``, ``dev``) or ``test`` and nothing else: one
          split each, every one in one of the layouts below; without such sub-folders all is the split ``train``;
        - ``metadata.jsonl``, one JSON object a line with ``file_name`` (relative) and other fields such as ``caption``
          or ``label``: the pictures listed there;
        - class folders: the class is the first folder's name, pictures may lie deeper; classes are sorted by name, and
          each has pictures in at least one split: a folder without any is an error, so that no class is lost;
        - pictures only: no classes.

    Returns:
        Splits with a column ``image`` and, by layout, ``label`` (ClassLabel) or the fields of the metadata.

    Raises:
        DataError: no pictures, a class without pictures, pictures beside class folders, or metadata that is malformed
            or names a missing file.
    """
    children = _visible_folders(folder)
    names = {child.name for child in children}
    if not (names and names <= SPLIT_FOLDERS.keys() and (folder / METADATA_NAME).is_file() is False):
        return datasets.DatasetDict({"train": _read_split(folder, _class_names([folder]))})
    if len({SPLIT_FOLDERS[name] for name in names}) < len(names):
        raise DataError(f"{folder} has two folders for one split: {', '.join(sorted(names))}; keep one of them")
    class_names = _class_names(children)
    return datasets.DatasetDict({SPLIT_FOLDERS[child.name]: _read_split(child, class_names) for child in children})


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith((".", "__")))


def _class_names(splits: list[Path]) -> list[str]:
    """Names of the folders with pictures in any split. Raises DataError if others lie beside them."""
    folders = [child for split in splits if not (split / METADATA_NAME).is_file() for child in _visible_folders(split)]
    names = {child.name for child in folders if next(_pictures_below(child), None)}
    empty = next((child for child in folders if child.name not in names), None)
    if names and empty:
        raise DataError(f"{empty} lies among class folders but holds no pictures ({KINDS}): fill it or remove it")
    return sorted(names)


def _pictures_below(folder: Path) -> Iterator[str]:
    """Pictures at any depth in sorted order; links are followed, each folder once."""
    visited = set()
    for root, folder_names, file_names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folder_names.clear()
            continue
        visited.add(real)
        folder_names[:] = sorted(name for name in folder_names if not name.startswith((".", "__")))
        for name in sorted(file_names):
            if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith("."):
                yield os.path.join(root, name)


def _read_split(folder: Path, class_names: list[str]) -> datasets.Dataset:
    if (folder / METADATA_NAME).is_file():
        return _read_metadata(folder)
    loose = sorted(
        str(path)
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if loose and class_names:
        raise DataError(f"{loose[0]} lies beside class folders: move it into one of them, or the folders elsewhere")
    if not class_names:
        if not loose:
            raise DataError(f"{folder} holds no pictures ({KINDS}) and no {METADATA_NAME}")
        return datasets.Dataset.from_dict({"image": loose}, features=datasets.Features({"image": datasets.Image()}))
    paths, labels = [], []
    for label, name in enumerate(class_names):
        pictures = list(_pictures_below(folder / name))
        paths += pictures
        labels += [label] * len(pictures)
    if not paths:
        raise DataError(f"{folder} holds no pictures")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)


def _read_metadata(folder: Path) -> datasets.Dataset:
    file = folder / METADATA_NAME
    rows = []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # no other character ends a line of JSON
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{file} line {number} is not JSON: {getattr(error, 'msg', error)}") from None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise DataError(f'{file} line {number} must be an object with a "file_name", the path from {folder}')
        path = folder / row.pop("file_name")
        if not path.is_file():
            raise DataError(f"{file} line {number} names {path}, which does not exist")
        rows.append({"image": str(path), **row})
    if not rows:
        raise DataError(f"{file} lists no pictures")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    try:
        table = datasets.Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
    except (TypeError, ValueError) as error:
        raise DataError(f"{file} mixes types in one field: {first_line(error)}") from None
    return table.cast_column("image", datasets.Image())
