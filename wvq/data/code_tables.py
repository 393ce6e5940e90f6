"""Tables of codes on disk: Arrow files written piece by piece, rows read by their number from memory maps.

A table is a folder that `datasets.load_from_disk` opens. It is never in memory as a whole: the writer holds one record
batch, the reader the rows requested.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from wvq.files.atomic import read_json, whole_file, write_json

ROWS_A_RECORD = 2**14  # rows that the writer gathers, and that lie in one piece on disk
_PART = 2**22  # codes that a pass over a table takes at once: numpy widens some counts to 8 bytes


def row_features(num_codes: int, length: int) -> datasets.Features:
    """Columns of a table: ``length`` codes in 2 bytes each up to K = 65,536, else in 4; the class; the captions."""
    # Fixed-size lists: Array2D is larger and reads far slower.
    codes = datasets.Value("uint16" if num_codes <= 2**16 else "uint32")
    captions = datasets.List(datasets.Value("string"))
    return datasets.Features(
        {"codes": datasets.List(codes, length=length), "label": datasets.Value("int32"), "caption": captions}
    )


def write_shard(file: Path, batches: Iterable[dict[str, Any]], features: datasets.Features) -> int:
    """Write one file of a table; it is complete or absent.

    Args:
        file: the Arrow file.
        batches: dicts with ``codes`` (B, T) int64 or of any shape that flattens to it, ``label`` (B ints) and
            ``caption`` (B lists of strings).
        features: columns, from :func:`row_features`.

    Returns:
        The number of rows.
    """
    schema, rows = features.arrow_schema, 0
    with (
        whole_file(file) as partial,
        partial.open("wb") as stream,
        pa.ipc.new_stream(stream, schema) as writer,
    ):
        for table in _records(_arrow_table(batch, features).cast(schema) for batch in batches):
            writer.write_table(table)
            rows += len(table)
    return rows


def _records(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of one piece and about ``ROWS_A_RECORD`` rows."""
    waiting, rows = [], 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        if rows >= ROWS_A_RECORD:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, rows = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _arrow_table(batch: dict[str, Any], features: datasets.Features) -> pa.Table:
    length, code_type = features["codes"].length, features["codes"].feature.dtype
    codes = batch["codes"].reshape(-1, length).cpu().numpy().astype(code_type)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), length)
    labels = pa.array([int(label) for label in batch["label"]], pa.int32())
    captions = pa.array([list(texts) for texts in batch["caption"]], pa.list_(pa.string()))
    return pa.table({"codes": rows, "label": labels, "caption": captions})


def finish_table(folder: Path, files: Sequence[str], features: datasets.Features, fingerprint: str) -> None:
    """Make a table of the files in a folder, in this order, without reading or copying them.

    Args:
        folder: holds the files.
        files: their names.
        features: columns of all of them.
        fingerprint: the table's key in `datasets`; the same for the same rows.
    """
    empty = datasets.Dataset(features.arrow_schema.empty_table(), fingerprint=fingerprint)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as described:
        empty.save_to_disk(described, num_shards=1)  # as the library itself writes them
        state = read_json(Path(described) / "state.json", OSError, f"{described} holds no state.json")
        write_json(folder / "state.json", state | {"_data_files": [{"filename": name} for name in files]})
        os.replace(Path(described) / "dataset_info.json", folder / "dataset_info.json")


class CodeTable:
    """Rows of a table, read in place.

    Args:
        folder: holds the table.

    Raises:
        OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException: it is missing, damaged or no table of codes.
    """

    def __init__(self, folder: Path):
        for name in ("state.json", "dataset_info.json"):  # the library takes any JSON for an object
            read_json(folder / name, OSError, f"{name} is missing")
        table = datasets.load_from_disk(str(folder), keep_in_memory=False).data
        self._captions = table.column("caption")
        pieces = [piece for piece in table.select(["codes", "label"]).to_batches() if len(piece)]
        # Zero-copy views of the memory maps; the library's own formats widen each code to 8 bytes.
        codes = [piece.column("codes").flatten().to_numpy(zero_copy_only=True) for piece in pieces]
        self._labels = [memoryview(piece.column("label").to_numpy(zero_copy_only=True)) for piece in pieces]
        self._starts = np.cumsum([0, *map(len, self._labels)])
        self.num_codes = sum(map(len, codes))
        self._type = codes[0].dtype if codes else np.dtype(np.uint16)
        # Slices of bytes joined are twice as fast as rows of arrays, and a batch may have a row of every piece.
        self._codes = [memoryview(part).cast("B") for part in codes]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def codes(self, rows: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """Codes (N, length) int64 of rows."""
        size = length * self._type.itemsize
        places = self._places(rows)
        joined = b"".join([self._codes[piece][start * size : (start + 1) * size] for piece, start in places])
        return np.frombuffer(joined, self._type).reshape(-1, length).astype(np.int64)

    def labels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Classes (N,) int64 of rows."""
        return np.array([self._labels[piece][place] for piece, place in self._places(rows)], np.int64)

    def captions(self, row: int) -> tuple[str, ...]:
        """The captions of one row. Caches of earlier versions hold one a row, not a list."""
        value = self._captions[row].as_py()
        return (value,) if isinstance(value, str) else tuple(value)

    def all_labels(self) -> np.ndarray:
        """Classes (N,) int32 of all rows, a copy."""
        return np.concatenate([np.zeros(0, np.int32), *self._labels])

    def parts(self) -> Iterator[np.ndarray]:
        """All codes in order, flat, a few at a time; views."""
        for piece in self._codes:
            codes = np.frombuffer(piece, self._type)
            for start in range(0, len(codes), _PART):
                yield codes[start : start + _PART]

    def _places(self, rows: Sequence[int] | np.ndarray) -> Iterator[tuple[int, int]]:
        """The piece that each row lies in, and its number there."""
        numbers = np.asarray(rows, np.int64)
        if len(numbers) and not -len(self) <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"rows must lie in a table of {len(self):,}")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        pieces = np.searchsorted(self._starts, numbers, side="right") - 1
        return zip(pieces.tolist(), (numbers - self._starts[pieces]).tolist(), strict=True)
