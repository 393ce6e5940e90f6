"""From a `datasets` split to a table of pictures: which columns to use, class ids and captions."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import datasets
import numpy as np

from wvq.data.metadata import CAPTION_KEYS
from wvq.data.pictures import picture_name
from wvq.distributed import is_main_process
from wvq.errors import DataError, near_match
from wvq.settings.data import DataConfig

T = TypeVar("T")
_WHOLE_NUMBER = re.compile(r"[0-9]+")


@dataclass
class PictureTable:
    """Undecoded pictures with what is known about each; the lists are as long as ``pictures``.

    Args:
        pictures: one column ``image`` of encoded files, memory-mapped.
        labels: class ids, -1 for none; None if the data has no classes.
        texts: the captions of each picture, at least one, "" where it has none; None if the data has no captions.
        groups: near twins share a group and are never split over the hold-out; None if every picture is on its own.
        flippable: whether a mirrored picture keeps its meaning; None if all do.
    """

    pictures: datasets.Dataset
    labels: list[int] | None = None
    texts: list[tuple[str, ...]] | None = None
    groups: list[str] | None = None
    flippable: list[bool] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def captions(self) -> list[str] | None:
        """The first caption of each picture; None if the data has no captions."""
        return None if self.texts is None else [texts[0] for texts in self.texts]

    def identity(self) -> str:
        """SHA-256 over the pictures' file names, classes and captions in order; their content is not read."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        names = self.pictures.flatten().select_columns(["image.path"]).with_format("arrow")
        for part in names.iter(batch_size=10_000):
            digest.update("\0".join(name or "" for name in part.column(0).to_pylist()).encode())
        digest.update(np.array([] if self.labels is None else self.labels, np.int64).tobytes())
        for texts in self.texts or ():
            digest.update(("\0".join(texts) + "\n").encode())
        return digest.hexdigest()

    def select(self, indices: Iterable[int]) -> PictureTable:
        """The pictures at ``indices``, in that order."""
        indices = [int(index) for index in indices]

        def chosen(values: list[T] | None) -> list[T] | None:
            return None if values is None else [values[index] for index in indices]

        return PictureTable(
            self.pictures.select(indices),
            labels=chosen(self.labels),
            texts=chosen(self.texts),
            groups=chosen(self.groups),
            flippable=chosen(self.flippable),
        )


def to_table(
    raw: datasets.Dataset, config: DataConfig, class_names: tuple[str, ...] | None = None
) -> tuple[PictureTable, tuple[str, ...]]:
    """Pick the columns that ``config`` names, or find them.

    Args:
        raw: a split; the columns ``group`` and ``flippable`` count in the built-in data set only.
        config: its ``image_column``, ``label_column`` and ``caption_column``.
        class_names: names that define the class ids, none for no classes; None for the data's own order (that of the
            ClassLabel, else sorted).

    Returns:
        The table, and the class names (empty without a class column).

    Raises:
        DataError: a column is unknown, ambiguous or of the wrong type, or a class is not in ``class_names``.
    """
    image, label, caption = find_columns(raw.features, config)
    raw = _with_pictures(raw, image)
    try:
        pictures = raw.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # the last is Arrow's "Unsupported cast"
        raise DataError(f"data.image_column: {image!r} does not hold pictures but {raw.features[image]}") from error
    labels, class_names = (None, ()) if label is None or class_names == () else _read_labels(raw, label, class_names)
    pictures = pictures if image == "image" else pictures.rename_column(image, "image")
    built_in = config.path == "openmoji" and {"group", "flippable"} <= raw.features.keys()
    table = PictureTable(
        pictures,
        labels=labels,
        texts=None if caption is None else _read_captions(raw, caption),
        groups=list(raw["group"]) if built_in else None,
        flippable=list(raw["flippable"]) if built_in else None,
    )
    return table, class_names


def find_columns(features: datasets.Features, config: DataConfig) -> tuple[str, str | None, str | None]:
    """The columns of pictures, classes and captions: those that ``config`` names, or what looks like them.

    Raises:
        DataError: a column is unknown, or several could be meant.
    """
    return (
        _image_column(features, config.image_column),
        _label_column(features, config.label_column),
        _caption_column(features, config.caption_column),
    )


def options(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the near match, or what there is."""
    known = [str(option) for option in known]
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return near_match(name, known) or f" (there are: {listed or 'none'})"


def named_split(splits: Mapping[str, T], name: str, field: str) -> T:
    """The split of a name.

    Args:
        splits: splits by name.
        name: name of the split.
        field: the setting that names it, for the error.

    Raises:
        DataError: there is none.
    """
    if name not in splits:
        raise DataError(f"{field}: the data has no split {name!r}{options(name, splits)}")
    return splits[name]


def _known_column(features: datasets.Features, name: str, field: str) -> str:
    if name not in features:
        raise DataError(f"{field}: the data has no column {name!r}{options(name, features)}")
    return name


def _image_column(features: datasets.Features, name: str | None) -> str:
    if name is not None:
        return _known_column(features, name, "data.image_column")
    columns = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = columns or [column for column, feature in features.items() if _holds_files(feature)]
    columns = [column for column in columns if column in ("image", "img")] or columns
    if len(columns) != 1:
        problem = f"several columns hold pictures ({', '.join(columns)})" if columns else "no column holds pictures"
        raise DataError(f"data.image_column: {problem}; name one of {', '.join(features)}")
    return columns[0]


def _holds_files(feature: object) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _label_column(features: datasets.Features, name: str | None) -> str | None:
    if name is not None:
        return _known_column(features, name, "data.label_column")
    columns = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if "label" in columns or (not columns and "label" in features):
        return "label"
    if len(columns) > 1:
        raise DataError(f"data.label_column: several columns hold classes ({', '.join(columns)}); name one of them")
    return columns[0] if columns else None


def _caption_column(features: datasets.Features, name: str | None) -> str | None:
    if name is not None:
        return _known_column(features, name, "data.caption_column")
    return next((column for column in CAPTION_KEYS if column in features), None)


def class_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their ids: as numbers where all are whole numbers, and otherwise as texts."""
    names = sorted(names)
    if not all(map(_WHOLE_NUMBER.fullmatch, names)):
        return names
    return sorted(names, key=lambda name: (len(name.lstrip("0")), name.lstrip("0")))


def _read_labels(
    raw: datasets.Dataset, column: str, class_names: tuple[str, ...] | None
) -> tuple[list[int], tuple[str, ...]]:
    feature, values = raw.features[column], list(raw[column])
    dtype = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.ClassLabel):
        own_names = tuple(feature.names)
        # -1 stands for "unlabelled" in the test splits of many data sets.
        values = [None if value is None or value < 0 else own_names[value] for value in values]
    elif isinstance(feature, datasets.Value) and (dtype.startswith(("int", "uint")) or dtype.endswith("string")):
        known = {value for value in values if value is not None}
        own_names = tuple(class_order(known) if dtype.endswith("string") else map(str, sorted(known)))
        values = [None if value is None else str(value) for value in values]
    else:
        raise DataError(f"data.label_column: {column!r} must hold class names or whole numbers, not {feature}")
    class_names = own_names if class_names is None else class_names
    ids = {name: index for index, name in enumerate(class_names)}
    unknown = sorted({value for value in values if value is not None} - ids.keys())
    if unknown:
        raise DataError(f"data.label_column: class {unknown[0]!r} is in the validation split but not in training")
    return [-1 if value is None else ids[value] for value in values], class_names


def _with_pictures(raw: datasets.Dataset, column: str) -> datasets.Dataset:
    """The rows that have a picture; tables of downloads keep a row, without one, for each that failed."""
    missing = raw.data.column(column).is_null().to_numpy()
    if len(missing) != len(raw) or not missing.any():
        return raw
    if is_main_process():
        warnings.warn(
            f"{missing.sum():,} of {len(raw):,} rows have no picture in {column!r} and are left out", stacklevel=3
        )
    return raw.select(np.flatnonzero(~missing))


def _read_captions(raw: datasets.Dataset, column: str) -> list[tuple[str, ...]]:
    captions = []
    for value in raw[column]:
        texts = tuple(text for text in (value if isinstance(value, list) else [value]) if text is not None)
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise DataError(f"data.caption_column: {column!r} must hold texts, not {type(wrong).__name__}")
        captions.append(texts or ("",))
    return captions


def warn_of_missing_captions(*tables: PictureTable) -> None:
    """One warning for all pictures without a caption (no field, null or blank): they count as without text."""
    missing = [
        (table, index)
        for table in tables
        for index, texts in enumerate(table.texts or ())
        if not any(text.strip() for text in texts)
    ]
    if missing and is_main_process():
        table, index = missing[0]
        total, name = sum(map(len, tables)), picture_name(table.pictures, index)
        warnings.warn(f"{len(missing):,} of {total:,} pictures have no caption, such as {name}", stacklevel=2)


def keep_classes(
    table: PictureTable, class_names: tuple[str, ...], keep: list[str]
) -> tuple[PictureTable, tuple[str, ...]]:
    """Only the pictures of the classes ``keep``, with class ids in that order.

    Raises:
        DataError: the table has no classes, or a name is unknown or repeated.
    """
    if not class_names or table.labels is None:
        raise DataError("data.classes: the data has no class column; set data.label_column or leave them out")
    for name in keep:
        if name not in class_names:
            raise DataError(f"data.classes: the data has no class {name!r}{options(name, class_names)}")
    if not keep or len(set(keep)) < len(keep):
        raise DataError("data.classes must name at least one class, and none of them twice")
    new_ids = {class_names.index(name): new_id for new_id, name in enumerate(keep)}
    labels = [new_ids.get(label) for label in table.labels]  # None for the pictures that are dropped
    subset = table.select(index for index, label in enumerate(labels) if label is not None)
    subset.labels = [label for label in labels if label is not None]
    return subset, tuple(keep)
