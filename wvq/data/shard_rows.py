"""The rows of shards, by `datasets`: one after the other as a stream, or all of them as tables on disk."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.builder import Key
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from datasets.utils.file_utils import xopen

from wvq.data.shards import URL, Shards
from wvq.errors import DataError, DownloadError, WVQError, first_line
from wvq.files.plain_text import plain_text
from wvq.settings.data import DataConfig

# What a shard that is damaged, or cannot be reached, makes the libraries raise.
_DAMAGES = (tarfile.TarError, pa.ArrowException, ValueError, EOFError, OSError)
_UNREACHABLE = (OSError, RuntimeError)
_TAR_END = 1024  # zero bytes
_CAPTIONS, _LABELS = ("caption", "captions", "text"), ("label", "class", "cls")  # fields of a .json


@dataclass
class TarConfig(datasets.BuilderConfig):
    """Which parts of a sample are read; found by their endings where None."""

    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None


class TarRows(WebDataset):
    """The samples of tar shards as rows of picture, class and captions.

    The library's own builder takes the columns from the first five samples of the first shard and refuses shards that
    differ from those (a ``.json`` whose fields are null at first, a ``.cls`` that holds a name); here every sample has
    the same columns.
    """

    BUILDER_CONFIG_CLASS = TarConfig
    DECODERS: dict[str, Any] = {}  # parts stay bytes until it is known which of them are read

    def _info(self) -> datasets.DatasetInfo:
        features = {
            self.config.image_column or "image": datasets.Image(decode=False),
            self.config.label_column or "label": datasets.Value("string"),
            self.config.caption_column or "caption": datasets.List(datasets.Value("string")),
        }
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _generate_examples(self, tar_paths: list[str], tar_iterators: list[Any]) -> Iterator[tuple[Key, dict]]:
        columns = list(self.info.features)
        for number, (path, members) in enumerate(zip(tar_paths, tar_iterators, strict=True)):
            refuse_cut_short(path)
            for row, sample in enumerate(self._get_pipeline_from_tar(path, members)):
                yield Key(number, row), dict(zip(columns, self._row(path, sample), strict=True))

    def _row(self, path: str, sample: dict[str, Any]) -> tuple[dict | None, str | None, list[str] | None]:
        key = sample["__key__"]
        parts = {name.lower(): value for name, value in sample.items() if not name.startswith("__")}
        config, picture = self.config, None
        kinds = [config.image_column] if config.image_column else ["jpg", "jpeg", "png", "webp", *self.IMAGE_EXTENSIONS]
        if name := _named(parts, kinds):
            picture = {"bytes": parts[name], "path": f"{key}.{name}"}
        fields: dict[str, Any] = {}
        if name := _named(parts, ["json"]):
            try:
                fields = json.loads(parts[name])
            except ValueError:  # also bytes that are no text
                raise DataError(f"{path}: {key}.{name} is not JSON") from None
        fields = fields if isinstance(fields, dict) else {}
        label = _value(path, key, parts, fields, config.label_column, ["cls"], _LABELS)
        texts = _value(path, key, parts, fields, config.caption_column, ["txt", "caption", "text"], _CAPTIONS)
        texts = [texts] if isinstance(texts, str) else texts
        captions = [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else None
        return picture, str(label) if isinstance(label, int | str) else None, captions


def refuse_cut_short(path: str) -> None:
    """Raise DataError for a tar that lacks its end: where a download or an upload stopped, readers just stop too.

    Of an address the end is fetched as well, where the server gives parts of a file; elsewhere this is not noticed.
    """
    with xopen(path, "rb") as file:
        try:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAR_END))
            end = file.read()
        except (OSError, ValueError):  # what file systems for addresses raise where a file is only read in order
            return
    if end != bytes(_TAR_END):
        raise DataError(f"{path} is cut short, or no tar file; fetch it again, or take it out of the shards")


def _named(parts: dict[str, Any], kinds: list[str]) -> str | None:
    """The part with one of these endings: by itself, or behind further dots."""
    whole = next((kind for kind in kinds if kind in parts), None)
    return whole or next((name for name in parts if name.rsplit(".", 1)[-1] in kinds), None)


def _value(
    path: str,
    key: str,
    parts: dict[str, Any],
    fields: dict[str, Any],
    column: str | None,
    kinds: list[str],
    names: tuple[str, ...],
) -> Any:
    """A class or captions: of a part of their own, else of a field of the ``.json``.

    Raises:
        DataError: the part is in another encoding than UTF-8, or UTF-16 with a byte order mark.
    """
    if name := _named(parts, kinds if column is None else [column]):
        try:
            return plain_text(parts[name]).strip()
        except ValueError as error:
            raise DataError(f"{path}: {key}.{name} {error}") from None
    return next(
        (fields[name] for name in (names if column is None else (column,)) if fields.get(name) is not None), None
    )


def _builder(shards: Shards, config: DataConfig, columns: list[str] | None = None) -> TarRows | Parquet:
    """What reads shards; their names are taken as they are, and never as patterns."""
    files = DataFilesDict(
        {split: DataFilesList(list(urls), identity_of(urls)) for split, urls in shards.splits.items()}
    )
    if shards.kind == "parquet":
        return Parquet(data_files=files, columns=columns)
    named = {name: getattr(config, name) for name in ("image_column", "label_column", "caption_column")}
    return TarRows(data_files=files, hash="2", **named)  # to be counted up when other rows come of the same shards


def identity_of(urls: Sequence[str]) -> list[tuple[str, ...]]:
    """What tells shards from others, or from a former state of the same: names, and on disk sizes and times."""
    states = [None if URL.match(url) else Path(url).stat() for url in urls]
    return [
        (url, *((str(state.st_size), str(state.st_mtime_ns)) if state else ()))
        for url, state in zip(urls, states, strict=True)
    ]


def read_rows(
    kind: str, url: str, config: DataConfig, start: int = 0, columns: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of one shard from number ``start`` on, as they come; pictures are not decoded.

    Raises:
        DataError, DownloadError: the shard is damaged, or cannot be reached.
    """
    with shard_errors(url):
        stream = _builder(Shards(kind, {"train": (url,)}), config, columns).as_streaming_dataset("train").decode(False)
        yield from islice(stream, start, None)


def row_features(kind: str, url: str, config: DataConfig) -> datasets.Features:
    """The columns of a shard."""
    with shard_errors(url):
        return _builder(Shards(kind, {"train": (url,)}), config).as_streaming_dataset("train").features


@contextmanager
def shard_errors(name: str) -> Iterator[None]:
    """Errors of reading shards, each in a line that names what was read.

    Raises:
        DataError, DownloadError: in place of those of the libraries.
    """
    try:
        yield
    except Exception as error:
        generated = isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__
        cause = generated or error
        if isinstance(cause, WVQError):
            raise cause from None
        if isinstance(cause, ImportError):  # of what fsspec needs for an address
            raise DownloadError(f"{name}: {first_line(cause)}; pip install 'wvq[http]'") from error
        if isinstance(cause, _UNREACHABLE) and URL.match(name):
            raise DownloadError(f"{name} cannot be reached ({type(cause).__name__}: {first_line(cause)})") from error
        if isinstance(cause, _DAMAGES):
            raise DataError(
                f"{name} cannot be read ({first_line(cause)}); fetch it again, or take it out of the shards"
            ) from error
        raise


def rows_at_rest(shards: Shards, config: DataConfig) -> datasets.DatasetDict:
    """The rows of tar shards as tables on disk, in the cache of `datasets`; columns that hold nothing are left out.

    Raises:
        DataError, DownloadError: a shard is damaged, or cannot be reached.
    """
    with shard_errors(config.path):
        builder = _builder(shards, config)
        builder.download_and_prepare()
        splits: datasets.DatasetDict = builder.as_dataset()
    for column in list(builder.info.features):
        if all(rows.data.column(column).null_count == len(rows) for rows in splits.values()):
            splits = splits.remove_columns(column)
    label = config.label_column or "label"
    if all(label in rows.column_names for rows in splits.values()):
        values = {split: list(rows[label]) for split, rows in splits.items()}
        names, ids = number_classes({value for column in values.values() for value in column}, config.classes)
        # A column of its own: a cast would write the pictures anew.
        splits = datasets.DatasetDict(
            {
                split: rows.remove_columns(label).add_column(
                    label, [ids.get(value) for value in values[split]], feature=datasets.ClassLabel(names=names)
                )
                for split, rows in splits.items()
            }
        )
    return splits


def number_classes(values: Collection[str | None], classes: list[str] | None) -> tuple[list[str], dict[str, int]]:
    """Names and ids of classes, from what samples call them; numbers are in the order of numbers.

    Args:
        values: what samples have; None for no class.
        classes: names for samples whose classes are numbers: those of class 0, 1, and so on. Not looked at where they
            are numbers themselves, or where the samples have names.

    Raises:
        DataError: a number without a name.
    """
    known = sorted({value for value in values if value is not None})
    numbers = all(value.isdecimal() for value in known)
    if numbers and classes and not any(name.isdecimal() for name in classes):
        ids = {value: int(value) for value in known}
        if known and (largest := max(ids.values())) >= len(classes):
            raise DataError(
                f"data.classes: a sample is of class {largest}, and there are names for 0 to {len(classes) - 1}"
            )
        return list(classes), ids
    names = sorted(known, key=int) if numbers else known
    return names, {name: number for number, name in enumerate(names)}
