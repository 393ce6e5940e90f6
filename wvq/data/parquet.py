"""Parquet files as `datasets` splits: a file, or those of a folder, each by its name and never as a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from wvq.data.inventory import Inventory, shown
from wvq.data.listing import Listing, list_folder, walk
from wvq.data.split_names import split_files
from wvq.errors import DataError, first_line

PARQUET = ".parquet"


def is_parquet(name: str) -> bool:
    """Whether a name is that of a parquet file; other programs put their own notes into files with a leading ``_``."""
    return name.lower().endswith(PARQUET) and not name.startswith("_")


def holds_parquet(folder: Path, image_column: str | None) -> bool:
    """Whether a folder, or one in it, has parquet files with pictures; others lie beside pictures as lists of them.

    No deeper: a folder of a million pictures would be walked for nothing.
    """
    top = list_folder(folder)
    listings = [top, *(list_folder(os.path.join(folder, name)) for name in top.folders)]
    files = [path for listing in listings for path in _parquet_paths(listing)]
    if not files or image_column is not None or not any(listing.pictures for listing in listings):
        return bool(files)
    try:
        schema = pq.read_schema(files[0])
    except (OSError, pa.ArrowException):
        return True  # said where it is read
    return any(_may_hold_pictures(field.type) for field in schema)


def _may_hold_pictures(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return binary or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _parquet_paths(listing: Listing) -> list[str]:
    return [os.path.join(listing.path, name) for name in listing.others if is_parquet(name)]


def read_parquet_folder(folder: Path, layout: str | None, inventory: Inventory) -> datasets.DatasetDict:
    """The parquet files of a folder, at any depth; splits by :func:`wvq.data.split_names.split_files`.

    Args:
        folder: the folder.
        layout: see :class:`wvq.settings.data.DataConfig`.
        inventory: is told which files were taken as which split, and what was passed over.

    Raises:
        DataError: a file cannot be read, or the names leave a doubt about the splits.
    """
    files = []
    for listing in walk(folder):
        place = os.path.relpath(listing.path, folder)
        own = any(part.startswith("_") for part in Path(place).parts)  # such as _delta_log
        paths = [] if own else _parquet_paths(listing)
        files += [os.path.relpath(path, folder) for path in paths]
        taken = {os.path.basename(path) for path in paths}
        for name in (*listing.pictures, *(name for name in listing.others if name not in taken)):
            inventory.pass_over(name)
        for name in listing.odd:
            inventory.pass_over(name, "no plain file")
    splits = split_files(files, layout, inventory)
    inventory.remark(f"{len(files):,} parquet file{'s' if len(files) > 1 else ''}")
    return _read({split: [os.path.join(folder, name) for name in names] for split, names in splits.items()})


def read_parquet_file(file: Path) -> datasets.DatasetDict:
    """One parquet file, for training.

    Raises:
        DataError: it cannot be read.
    """
    return _read({"train": [str(file)]})


def _read(files: dict[str, list[str]]) -> datasets.DatasetDict:
    absolute = {split: [os.path.abspath(file) for file in names] for split, names in files.items()}
    every = [file for names in absolute.values() for file in names]
    for file in every:
        if "::" in file or "://" in file or not _is_utf8(file):
            raise DataError(f"{shown(file)}: `datasets` cannot open a path with :: or ://, or bytes that are no UTF-8")
    try:
        patterns = {split: [glob.escape(file) for file in names] for split, names in absolute.items()}
        return datasets.load_dataset("parquet", data_files=patterns)
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, pa.ArrowException) as error:
        raise DataError(_blame(every, error)) from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _blame(files: Iterable[str], error: Exception) -> str:
    """Which of some files cannot be read, or has other columns than the first, in one line."""
    first = None
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (OSError, pa.ArrowException) as problem:
            return f"{file} cannot be read as parquet: {first_line(problem)}"
        columns = {field.name: str(field.type) for field in schema}
        first = first or (file, columns)
        if columns != first[1]:
            other = next(name for name in (first[1] | columns) if first[1].get(name) != columns.get(name))
            kinds = [has.get(other, "not there") for has in (columns, first[1])]
            return (
                f"{file} has other columns than {first[0]}: {other!r} is {kinds[0]} and {kinds[1]}; write the "
                "files with one schema, or move it elsewhere"
            )
    return f"{' and '.join(list(files)[:2])} cannot be read as parquet: {first_line(error.__cause__ or error)}"
