"""Ids of pictures that do not change when their folder moves, and the fingerprint of what a data set gives to a run.

A file counts by its path from the folder of the data, and by its size. A picture within a table counts by the name and
the size that are stored there, and by its last bytes (without a name by these and the size). Classes and captions do
not count: a picture that was trained on under another class was trained on. The built-in pictures are drawn anew on
each machine, and count by their names. Pictures are not decoded, and of a large set few are looked at. A stream has no
fingerprint: its pictures would all have to be read for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wvq.data.dataset import ImageSplits
from wvq.data.opening import StreamSplits
from wvq.data.tables import PictureTable
from wvq.files.fingerprint import DataFingerprint, PictureSketch
from wvq.files.user_folders import expand_user

_LAST_BYTES = 64  # they hold pixels, or a checksum of them, in the usual formats


def fingerprint_of(images: ImageSplits | StreamSplits, path: str) -> DataFingerprint | None:
    """The fingerprint of a data set as it is held out; None for a stream.

    Args:
        images: the data set.
        path: where it was read from, as in :class:`wvq.settings.data.DataConfig`.
    """
    if isinstance(images, StreamSplits):
        return None
    return DataFingerprint(sketch_table(images.train.table, path), sketch_table(images.validation.table, path))


def sketch_table(table: PictureTable, path: str) -> PictureSketch:
    """The ids of a table's pictures; arguments as for :func:`fingerprint_of`."""
    rows = _Rows(table, path)
    return PictureSketch.of(rows.names(), None if path == "openmoji" else rows.sample)


class _Rows:
    """The rows of a table, read where they lie: bytes of pictures are not copied."""

    def __init__(self, table: PictureTable, path: str):
        pictures = table.pictures
        # A choice of rows is a list of their numbers beside the whole column.
        chosen = pictures._indices
        self.column: pa.ChunkedArray = pictures.data.column("image")
        self.rows = np.arange(len(pictures)) if chosen is None else chosen.column(0).to_numpy()
        self.root = os.path.join(os.path.abspath(expand_user(path)), "")
        self.built_in = path == "openmoji"
        self.paths = pc.struct_field(self.column, "path").take(self.rows)
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(self.column, "bytes")), -1)  # -1: a file
        self.lengths = lengths.to_numpy()[self.rows]

    def names(self) -> Iterator[str]:
        for number, (path, length) in enumerate(zip(self.paths, self.lengths.tolist(), strict=True)):
            name = path.as_py() or ""
            if length < 0:
                yield self._relative(name)
            elif self.built_in:
                yield name
            else:
                yield f"{name or self._last_bytes(number).hex()} {length}"

    def sample(self, number: int) -> bytes:
        if self.lengths[number] >= 0:
            return self._last_bytes(number)
        with contextlib.suppress(OSError):
            return str(os.stat(self.paths[number].as_py()).st_size).encode()
        return b""

    def _relative(self, path: str) -> str:
        """The path from the folder of the data; of a file elsewhere, as in a cache of the Hub, its last two names."""
        path = os.path.abspath(path)
        inside = path.startswith(self.root)
        return (path[len(self.root) :] if inside else "/".join(path.split(os.sep)[-2:])).replace(os.sep, "/")

    def _last_bytes(self, number: int) -> bytes:
        content: bytes = self.column[int(self.rows[number])]["bytes"].as_buffer()[-_LAST_BYTES:].to_pybytes()
        return content
