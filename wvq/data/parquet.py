"""Parquet files as `datasets` splits: a file, or those of a folder, each by its name and never as a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from wvq.data.inventory import Inventory, shown
from wvq.data.listing import Listing, is_shard, look, walk
from wvq.data.split_names import split_files
from wvq.errors import DataError, first_line

PARQUET = ".parquet"


def holds_parquet(folder: Path, image_column: str | None, seen: Sequence[Listing] | None = None) -> bool:
    """Whether a folder, or one in it, has parquet files with pictures; others lie beside pictures as lists of them.

    Args:
        folder: the folder.
        image_column: name of the column with the pictures, if it is given.
        seen: what :func:`wvq.data.listing.look` saw in the folder, if it has looked already.
    """
    listings = look(folder) if seen is None else seen
    files = [path for listing in listings for path in _parquet_paths(listing)]
    if not files or image_column is not None or not any(listing.pictures for listing in listings):
        return bool(files)
    try:
        return any(_may_hold_pictures(field.type) for field in _schema(files[0]))
    except DataError:
        return True  # an error where all are read


def _may_hold_pictures(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return binary or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _parquet_paths(listing: Listing) -> list[str]:
    return [os.path.join(listing.path, name) for name in listing.others if is_shard(name, "parquet")]


def read_parquet_folder(folder: Path, layout: str | None, inventory: Inventory) -> datasets.DatasetDict:
    """The parquet files of a folder, at any depth; splits by :func:`wvq.data.split_names.split_files`.

    Args:
        folder: the folder.
        layout: see :class:`wvq.settings.data.DataConfig`.
        inventory: receives which files were taken as which split, and what was passed over.

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
    if layout == "classes":
        raise DataError(f"{folder} holds parquet files, which have no class folders: leave data.layout out")
    splits = split_files(files, layout, inventory)
    count = sum(map(len, splits.values()))
    inventory.remark(f"{count:,} parquet file{'s' if count > 1 else ''}")
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
    features = datasets.Features.from_arrow_schema(_common_schema(every))
    patterns = {split: [glob.escape(file) for file in names] for split, names in absolute.items()}
    try:
        return datasets.load_dataset("parquet", data_files=patterns, features=features)
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, pa.ArrowException) as error:
        names = " and others" if len(every) > 1 else ""
        raise DataError(f"{every[0]}{names} cannot be read: {first_line(error.__cause__ or error)}") from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _schema(file: str) -> pa.Schema:
    try:
        with open(file, "rb") as opened:  # a path would be taken for a URI
            return pq.read_schema(opened)
    except (OSError, pa.ArrowException) as problem:
        raise DataError(f"{file} cannot be read as parquet: {first_line(problem)}") from problem


def _common_schema(files: list[str]) -> pa.Schema:
    """The columns of some files, with types that hold the values of all.

    Raises:
        DataError: a file cannot be read, or has other columns than the first.
    """
    common = None
    for file in files:
        schema = _schema(file)
        common = schema if common is None else common
        if other := sorted(set(common.names) ^ set(schema.names)):
            without, with_it = (files[0], file) if other[0] in schema.names else (file, files[0])
            raise DataError(
                f"{without} has no column {other[0]!r}, and {with_it} has: write the files with the same columns, "
                "or keep them in folders of their own"
            )
        try:
            common = pa.unify_schemas([common, schema], promote_options="permissive")
        except pa.ArrowException as problem:
            raise DataError(f"{file} has other types than {files[0]}: {first_line(problem)}") from problem
    assert common is not None
    return common
