"""Arrays of an .npz file, whose headers are compared with the file's size before anything large is read.

A zip file declares the sizes of its members, and an array's header its shape, and both may be wrong: a few kilobytes
can declare or unpack to terabytes. NumPy's reader trusts both, and raises errors of many kinds.
"""

from __future__ import annotations

import contextlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from wvq.errors import DataError, first_line

_CHUNK = 2**20
_SMALL = 64 * 2**20  # bytes that may be of one value, such as the zeros of a test
_MOST_PACKED = 100  # times: more is a bomb; pictures are packed to a half, drawings to a tenth
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # those of numpy.savez and savez_compressed
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class StoredArray:
    """An array in an .npz file, not read yet.

    Attributes:
        file: the .npz file.
        name: name of the array.
        shape: its shape.
        dtype: type of its values.
        fortran: whether the first index runs fastest.
        start: bytes before the values, within the member.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The whole array. Raises DataError if the file is damaged."""
        with readable(self.file), self._opened() as member:
            member.read(self.start)  # after a seek, zipfile does not compare the values with their checksum
            values = np.frombuffer(bytearray(member.read(self.nbytes)), self.dtype)
            return values.reshape(self.shape, order="F" if self.fortran else "C")

    def verify(self) -> None:
        """Read all values once, a few at a time. Raises DataError if they are not what was written."""
        with readable(self.file), self._opened() as member:
            length = 0
            while content := member.read(_CHUNK):  # at the end zipfile compares them with their checksum
                length += len(content)
            if length != self.start + self.nbytes:
                raise EOFError(f"{self.name} is cut short")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(self.file) as archive, archive.open(f"{self.name}.npy") as member:
            yield member


class RowReader:
    """Rows of a stored array in C order, a few in memory at a time. Packed ones are fast only if read forwards."""

    def __init__(self, array: StoredArray):
        self.array = array
        self._row_bytes = array.nbytes // max(1, array.shape[0])
        self._archive: zipfile.ZipFile | None = None
        self._member: IO[bytes] | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` - 1, of the array's own type. Raises DataError if the file is damaged."""
        size = (stop - start) * self._row_bytes
        with readable(self.array.file):
            if self._member is None:
                self._archive = zipfile.ZipFile(self.array.file)
                self._member = self._archive.open(f"{self.array.name}.npy")
            self._member.seek(self.array.start + start * self._row_bytes)
            content = bytearray(self._member.read(size))
            if len(content) < size:
                raise EOFError(f"{self.array.name} is cut short")
            return np.frombuffer(content, self.array.dtype).reshape(stop - start, *self.array.shape[1:])


def stored_arrays(file: str | Path, names: tuple[str, ...]) -> dict[str, StoredArray]:
    """Those of the named arrays that an .npz file holds; only their headers are read.

    Raises:
        DataError: the file is no .npz file, or an array is there twice, packed or written in a way that numpy.savez
            does not use, of objects, or declared with more values than the file can hold.
    """
    file = Path(file)
    with readable(file), zipfile.ZipFile(file) as archive:
        size = file.stat().st_size
        arrays: dict[str, StoredArray] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name not in names or name == info.filename:
                continue
            if name in arrays:
                raise ValueError(f"it holds {name} twice")
            _check_member(info, size)
            with archive.open(info) as member:
                arrays[name] = _header(file, name, member)
            if arrays[name].start + arrays[name].nbytes != info.file_size:
                raise ValueError(f"{name} declares {arrays[name].nbytes:,} bytes where {info.file_size:,} are stored")
        return arrays


def _check_member(info: zipfile.ZipInfo, size: int) -> None:
    if info.compress_type not in _METHODS or info.flag_bits & 1:
        raise ValueError(f"{info.filename} is encrypted or packed in another way; write it by numpy.savez")
    if info.compress_size > size or (info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size):
        raise ValueError(f"{info.filename} declares {info.file_size:,} bytes in a file of {size:,}")
    if info.file_size > max(_SMALL, _MOST_PACKED * info.compress_size):
        raise ValueError(
            f"{info.filename} would unpack to {info.file_size:,} bytes from {info.compress_size:,}: that is no picture"
        )


def _header(file: Path, name: str, member: IO[bytes]) -> StoredArray:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise ValueError(f"{name} has the unknown format {version[0]}.{version[1]}")
    shape, fortran, dtype = _HEADERS[version](member)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    if any(isinstance(side, bool) or side < 0 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return StoredArray(file, name, shape, dtype, fortran, member.tell())


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """Within the block any error of zipfile, zlib and NumPy over a damaged file becomes one DataError.

    Raises:
        DataError: see above.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{file} does not exist") from None
    except (
        *(OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, SyntaxError),
        *(MemoryError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error),
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is no .npz file that can be read ({first_line(error)[:200]})") from error
