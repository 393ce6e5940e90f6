"""Reference and sample files as ADM's evaluation has them (Dhariwal & Nichol 2021): .npz with pictures and statistics.

``arr_0`` holds pictures (N, H, W, 3) uint8, ``arr_1`` their classes; ``mu`` and ``sigma`` are the mean and covariance
of Inception's features, ``mu_s`` and ``sigma_s`` those of its spatial features.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wvq.errors import DataError
from wvq.eval.metrics import Moments
from wvq.outputs import file_sha256, whole_file

_NAMES = ("mu", "sigma", "mu_s", "sigma_s", "arr_0")


@dataclass
class ReferenceArchive:
    """Real pictures, or what is known of them.

    Attributes:
        file: where it was read.
        sha256: hash of the file.
        moments: of Inception's features, or None.
        spatial: of Inception's spatial features, or None.
        pictures: uint8 (N, 3, H, W), or None.
    """

    file: Path
    sha256: str
    moments: Moments | None
    spatial: Moments | None
    pictures: Tensor | None

    def description(self) -> dict:
        """The identity of the reference, for a result's settings."""
        found = {"file": self.file.name, "sha256": self.sha256, "statistics": self.moments is not None}
        if self.pictures is not None:
            found |= {"num_images": len(self.pictures), "image_size": self.pictures.shape[-1], "crop": "as in the file"}
        return found


def read_archive(file: str | Path) -> ReferenceArchive:
    """Read a reference; nothing in it is unpickled.

    Raises:
        DataError: the file is missing, damaged, or holds neither statistics nor pictures of the right shape.
    """
    file = Path(file)
    try:
        sha256 = file_sha256(file)
        with np.load(file, allow_pickle=False) as stored:
            names = set(_NAMES) & set(stored.files)
            arrays = {name: stored[name] for name in names}
    except FileNotFoundError:
        raise DataError(f"reference: {file} does not exist") from None
    except (OSError, ValueError, EOFError, AttributeError, KeyError, zipfile.BadZipFile) as error:
        reason = "it holds pickled objects" if "allow_pickle" in str(error) else error
        raise DataError(f"reference: {file} is no .npz file that can be read ({reason})") from error
    moments = _moments(file, arrays, "mu", "sigma")
    pictures = arrays.get("arr_0")
    if pictures is not None:
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise DataError(f"reference: arr_0 of {file} must be uint8 (N, H, W, 3), not {_form(pictures)}")
        pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    if moments is None and pictures is None:
        raise DataError(f"reference: {file} holds neither mu and sigma nor pictures in arr_0")
    return ReferenceArchive(file, sha256, moments, _moments(file, arrays, "mu_s", "sigma_s"), pictures)


def array_shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that count in a reference, from their headers alone.

    Raises:
        DataError: the file is no .npz file, or holds none of them.
    """
    found: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in sorted({f"{name}.npy" for name in _NAMES} & set(archive.namelist())):
                with archive.open(name) as opened:
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    found[name.removesuffix(".npy")] = read[np.lib.format.read_magic(opened)](opened)[0]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is no .npz file that can be read ({error})") from error
    if not all(found.values()):
        raise DataError(f"{file} holds a single number where an array should be")
    if not found:
        raise DataError(f"{file} holds neither pictures (arr_0) nor statistics (mu and sigma)")
    return found


def write_archive(file: str | Path, pictures: Tensor, labels: list[int] | None = None) -> None:
    """Write pictures, uint8 (N, 3, H, W), and their classes; the file is complete or absent.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    arrays = {"arr_0": pictures.permute(0, 2, 3, 1).contiguous().numpy()}
    if labels is not None:
        arrays["arr_1"] = np.asarray(labels, np.int64)
    try:
        with whole_file(file) as partial, partial.open("wb") as opened:
            np.savez(opened, **arrays)
    except OSError as error:
        raise DataError(f"{file} could not be written ({error.strerror or error}); make room and repeat") from error


def _moments(file: Path, arrays: dict[str, np.ndarray], mean: str, covariance: str) -> Moments | None:
    if mean not in arrays and covariance not in arrays:
        return None
    if mean not in arrays or covariance not in arrays:
        raise DataError(f"reference: {file} holds only one of {mean} and {covariance}")
    mu, sigma = arrays[mean], arrays[covariance]
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise DataError(
            f"reference: {mean} and {covariance} of {file} must be (D,) and (D, D) numbers, "
            f"not {_form(mu)} and {_form(sigma)}"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise DataError(f"reference: {mean} and {covariance} of {file} contain NaN or infinity")
    return Moments(torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64)))


def _form(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
