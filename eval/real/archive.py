"""Reference and sample files as ADM's evaluation has them (Dhariwal & Nichol 2021): .npz with pictures and statistics.

``arr_0`` holds pictures (N, H, W, 3) uint8, ``arr_1`` their classes; ``mu`` and ``sigma`` are the mean and covariance
of Inception's features, ``mu_s`` and ``sigma_s`` those of its spatial features.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from wvq.checks import PATH
from wvq.errors import DataError
from wvq.eval.figures.distances import Moments
from wvq.eval.real.npz import RowReader, StoredArray, readable, stored_arrays
from wvq.files.atomic import file_sha256, whole_file
from wvq.files.user_folders import expand_user
from wvq.settings.size import size_of

_NAMES = ("mu", "sigma", "mu_s", "sigma_s", "arr_0")
_MOST_DIMS = 8_192  # of features: a covariance of half a GiB; Inception's have 2,048
_MOST_PIXELS = 4_096  # a side: 3 GiB in a batch of 64
_MOST_WHOLE = 2**30  # bytes of pictures that are read at once


class ArchivedPictures:
    """Pictures of an archive, read on access: a slice gives uint8 (N, 3, H, W).

    Attributes:
        shape: (N, 3, H, W) of all of them.
    """

    def __init__(self, array: StoredArray):
        count, height, width, channels = array.shape
        self.shape = (count, channels, height, width)
        self._reader = RowReader(array)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, run: slice) -> Tensor:
        start, stop, _ = run.indices(len(self))
        return torch.from_numpy(self._reader.rows(start, max(start, stop))).permute(0, 3, 1, 2)


@dataclass
class ReferenceArchive:
    """Real pictures of a file, their statistics, or both.

    Attributes:
        file: where it was read.
        sha256: hash of the file.
        moments: those of Inception's features, or None.
        spatial: those of Inception's spatial features, or None.
        pictures: uint8 (N, 3, H, W), read by slices, or None.
    """

    file: Path
    sha256: str
    moments: Moments | None
    spatial: Moments | None
    pictures: Tensor | ArchivedPictures | None

    def description(self) -> dict[str, Any]:
        """The identity of the reference, for a result's settings."""
        identity: dict[str, Any] = {"file": self.file.name, "sha256": self.sha256}
        identity["statistics"] = self.moments is not None
        if self.pictures is not None:
            identity |= {"num_images": len(self.pictures), "image_size": size_of(self.pictures.shape)}
            identity["crop"] = "as in the file"
        return identity


def read_archive(file: str | Path) -> ReferenceArchive:
    """Read a reference, its pictures once through and not into memory; nothing in it is unpickled.

    Raises:
        DataError: the file is missing, damaged, or holds neither statistics nor pictures of the right shape; or more
            is declared than the file can hold, statistics of more than 8,192 dims, or pictures of more than 4,096 px.
    """
    file = expand_user(file, "reference", PATH)
    try:
        arrays = stored_arrays(file, _NAMES)
        with readable(file):
            sha256 = file_sha256(file)
        moments, spatial = _moments(file, arrays, "mu", "sigma"), _moments(file, arrays, "mu_s", "sigma_s")
        pictures = _pictures(file, arrays["arr_0"]) if "arr_0" in arrays else None
        if moments is None and pictures is None:
            raise DataError(f"{file} holds neither mu and sigma nor pictures in arr_0")
    except DataError as error:
        raise DataError(f"reference: {error}") from error
    return ReferenceArchive(file, sha256, moments, spatial, pictures)


def _pictures(file: Path, array: StoredArray) -> Tensor | ArchivedPictures:
    if array.dtype != np.uint8 or len(array.shape) != 4 or array.shape[-1] != 3:
        raise DataError(f"arr_0 of {file} must be uint8 (N, H, W, 3), not {_form(array)}")
    if not all(0 < side <= _MOST_PIXELS for side in array.shape[1:3]):
        raise DataError(f"arr_0 of {file} must hold pictures of 1 to {_MOST_PIXELS:,} px a side, not {_form(array)}")
    if array.fortran:  # no picture lies in one piece
        if array.nbytes > _MOST_WHOLE:
            raise DataError(f"arr_0 of {file} is in Fortran order and large; save numpy.ascontiguousarray of it")
        return torch.from_numpy(np.ascontiguousarray(array.read())).permute(0, 3, 1, 2)
    array.verify()
    return ArchivedPictures(array)


def array_shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that count in a reference, from their headers alone.

    Raises:
        DataError: the file is no .npz file that can be read, or holds none of them.
    """
    shapes = {name: array.shape for name, array in stored_arrays(file, _NAMES).items()}
    if not shapes:
        raise DataError(f"{file} holds neither pictures (arr_0) nor statistics (mu and sigma)")
    if not all(shapes.values()):
        raise DataError(f"{file} holds a single number where an array should be")
    return shapes


def write_archive(
    file: str | Path, batches: Iterable[Tensor], num_images: int, labels: list[int] | None = None
) -> None:
    """Write pictures and their classes, one batch in memory at a time; the file is complete or absent.

    Args:
        file: to write.
        batches: uint8 (B, 3, H, W), all of one size.
        num_images: pictures in all of them, at least one.
        labels: a class for each.

    Raises:
        DataError: the disk is full or cannot be written, or there are more or fewer pictures.
    """
    try:
        with whole_file(file) as partial, zipfile.ZipFile(partial, "w", allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                _write_pictures(file, member, batches, num_images)
            if labels is not None:
                with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(labels, np.int64), allow_pickle=False)
    except OSError as error:
        raise DataError(f"{file} could not be written ({error.strerror or error}); make room and repeat") from error


def _write_pictures(file: str | Path, member: IO[bytes], batches: Iterable[Tensor], num_images: int) -> None:
    written, size = 0, None
    for batch in batches:
        pictures = batch.permute(0, 2, 3, 1).contiguous().numpy()
        if size is None:
            size = pictures.shape[1:]
            header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *size)}
            np.lib.format.write_array_header_1_0(member, header)
        if pictures.shape[1:] != size:
            raise DataError(f"{file}: pictures of {size} and {pictures.shape[1:]} do not go into one archive")
        member.write(pictures.data)
        written += len(pictures)
    if written != num_images or not written:
        raise DataError(f"{file} takes {num_images:,} pictures, and there are {written:,}")


def _moments(file: Path, arrays: dict[str, StoredArray], mean: str, covariance: str) -> Moments | None:
    if mean not in arrays and covariance not in arrays:
        return None
    if mean not in arrays or covariance not in arrays:
        raise DataError(f"{file} holds only one of {mean} and {covariance}")
    forms = [arrays[name] for name in (mean, covariance)]
    (dims,) = forms[0].shape if len(forms[0].shape) == 1 else (-1,)
    if forms[1].shape != (dims, dims) or not 0 < dims <= _MOST_DIMS or any(form.dtype.kind != "f" for form in forms):
        raise DataError(
            f"{mean} and {covariance} of {file} must be (D,) and (D, D) numbers, D from 1 to {_MOST_DIMS:,}, "
            f"not {_form(forms[0])} and {_form(forms[1])}"
        )
    mu, sigma = (form.read() for form in forms)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise DataError(f"{mean} and {covariance} of {file} contain NaN or infinity")
    return Moments(torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64)))


def _form(array: StoredArray) -> str:
    return f"{array.dtype} {array.shape}"
