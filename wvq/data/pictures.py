"""Decoding: files to RGB pictures, kept in memory where the set fits; one line for each file that cannot be read."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from wvq.data.pixels import halve, to_rgb
from wvq.errors import DataError, UnreadablePictureError, first_line
from wvq.settings.size import Size, height_width

# Sets whose decoded pictures fit are decoded once and kept; larger ones stay on disk and are decoded on each access.
MEMORY_LIMIT_BYTES = 256 * 2**20
# Larger pictures are not decoded: 13,377 pixels squared, or 0.7 GB in Pillow. It is Pillow's own default
# limit; a lower limit set in Pillow counts as well, a higher one does not.
MAX_PIXELS = 178_956_970
_READABLE_AGAIN = "unreadable for a while, readable now"
# Errors of the machine, not of the picture: leaving such a picture out would make a run depend on the moment.
_MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def decode(encoded: dict[str, Any]) -> Image.Image:
    """A stored picture, upright; of an animation the first frame.

    Args:
        encoded: ``bytes`` of the file, or None with its ``path``.

    Raises:
        Many kinds, as Pillow's decoders do; DataError for a picture of more than ``MAX_PIXELS`` pixels, by the
        file's header, before anything is decoded.
    """
    content, path = encoded["bytes"], encoded["path"]
    try:
        if content is None and (path is None or "://" in path):
            image = datasets.Image().decode_example(encoded)
        else:
            if content is None and os.path.exists(path) and not os.path.isfile(path):
                raise DataError(
                    "no file but a pipe, a device or a folder"
                )  # to open a pipe would wait for its other end
            image = Image.open(path if content is None else io.BytesIO(content))
        too_large = image.width * image.height > MAX_PIXELS
    except Image.DecompressionBombError:
        too_large = True
    if too_large:
        raise DataError(f"more than {MAX_PIXELS:,} pixels: make it smaller")
    image.load()
    return image if image.getexif().get(ExifTags.Base.Orientation) is None else ImageOps.exif_transpose(image)


def read_picture(file: str | Path) -> Image.Image:
    """The picture in a file as RGB.

    Raises:
        UnreadablePictureError: it cannot be decoded.
    """
    try:
        return to_rgb(decode({"bytes": None, "path": str(file)}))
    except Exception as error:  # of many kinds, as above
        raise _unreadable(str(file), _reason(error)) from error


class PictureStore:
    """Decodes pictures, and keeps them in memory if the whole set fits in ``MEMORY_LIMIT_BYTES``.

    Prepared pictures are RGB and halved as far as every crop or pad would halve them first anyway: that of a prepared
    picture equals that of its original to the bit. A picture that could not be read is not tried again; of a larger set
    the last picture is kept, so that several crops of one take one decoding.

    Args:
        pictures: table with a column ``image``.
        largest: the largest box that a picture is resized for: the side of a square, or height and width.
        inside: whether pictures are to fit inside of the box, and not to cover it.
    """

    def __init__(self, pictures: datasets.Dataset, largest: Size | tuple[int, int], inside: bool = False):
        self.pictures = pictures
        self.largest, self.inside = height_width(largest), inside
        self.cache: list[Image.Image | None] | None = None
        self.fits: bool | None = None
        self._last: tuple[int, Image.Image] | None = None
        self._failures: dict[int, tuple[str, str]] = {}  # file name and reason

    def original(self, index: int) -> Image.Image:
        """The picture as stored, upright. Raises UnreadablePictureError, which names the file."""
        return self._read(index, lambda image: image)

    def prepared(self, index: int) -> Image.Image:
        """The RGB picture to crop from. Raises UnreadablePictureError, which names the file."""
        if index in self._failures:
            raise _unreadable(*self._failures[index])
        if self.fits is None:
            self.fits = self._estimate_bytes() <= MEMORY_LIMIT_BYTES
            self.cache = [None] * len(self.pictures) if self.fits else None
        if self.cache is None:
            if self._last is None or self._last[0] != index:
                self._last = index, self._read(index, self._prepare)
            return self._last[1]
        if (picture := self.cache[index]) is None:
            picture = self.cache[index] = self._read(index, self._prepare)
        return picture

    def failure(self, index: int) -> str:
        """File name and reason, as ``a.png (reason)``, of a picture that this or another process could not read."""
        with contextlib.suppress(UnreadablePictureError):
            self.prepared(index)
        name, reason = self._failures.get(index, (picture_name(self.pictures, index), _READABLE_AGAIN))
        return f"{name} ({reason})"

    def _read(self, index: int, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
        try:
            return convert(decode(self.pictures[index]["image"]))
        # Pillow's decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error and more.
        except Exception as error:
            name, reason = picture_name(self.pictures, index), _reason(error)
            _raise_of_machine(error, name)
            self._failures[index] = name, reason
            raise _unreadable(name, reason) from error

    def _prepare(self, image: Image.Image) -> Image.Image:
        return _prepared(image, self.largest, self.inside)

    def _estimate_bytes(self) -> float:
        probes = np.unique(np.linspace(0, len(self.pictures) - 1, 8).astype(int))
        sizes = []
        for index in probes:
            try:
                sizes.append(self._read(int(index), self._prepare).size)
            except UnreadablePictureError:
                continue
        if not sizes:
            return float("inf")
        return len(self.pictures) * 3 * float(np.mean([width * height for width, height in sizes]))


class EncodedPicture(Protocol):
    """A picture that is at hand as the bytes of its file."""

    @property
    def encoded(self) -> dict[str, Any]:
        """As :func:`decode` takes it."""
        ...

    @property
    def name(self) -> str:
        """What messages call it."""
        ...


class EncodedStore:
    """Decodes pictures that come with their bytes, as :class:`PictureStore` does those of a table.

    The last picture is kept, so that several crops of one take one decoding.

    Args:
        largest, inside: as of :class:`PictureStore`.
    """

    def __init__(self, largest: Size | tuple[int, int], inside: bool = False):
        self.largest, self.inside = height_width(largest), inside
        self._last: tuple[EncodedPicture, Image.Image] | None = None

    def prepared(self, picture: EncodedPicture) -> Image.Image:
        """The RGB picture to crop from. Raises UnreadablePictureError, which names it."""
        if self._last is None or self._last[0] is not picture:
            try:
                self._last = picture, _prepared(decode(picture.encoded), self.largest, self.inside)
            except Exception as error:  # of many kinds, as above
                _raise_of_machine(error, picture.name)
                raise _unreadable(picture.name, _reason(error)) from error
        return self._last[1]

    def failure(self, picture: EncodedPicture) -> str:
        """Name and reason, as ``a.png (reason)``, of a picture that could not be read."""
        try:
            self.prepared(picture)
        except UnreadablePictureError as error:
            return f"{picture.name} ({_reason(error.__cause__ or error)})"
        return f"{picture.name} ({_READABLE_AGAIN})"


def picture_name(pictures: datasets.Dataset, index: int) -> str:
    """Name of a picture of a table in messages: that of its file, or its number."""
    return (pictures[index]["image"] or {}).get("path") or f"picture {index}"


def _unreadable(name: str, reason: str) -> UnreadablePictureError:
    return UnreadablePictureError(f"{name} cannot be read as a picture ({reason}); replace it or take it out")


def _prepared(image: Image.Image, largest: tuple[int, int], inside: bool) -> Image.Image:
    """RGB, halved as far as every crop or pad for the largest box would halve it first anyway."""
    height, width = largest
    # Resized to cover the box, the picture has max(height x its width, width x its height)^2 / its pixels.
    covering = max(height * image.width, width * image.height) ** 2
    if not inside and covering > MAX_PIXELS * image.width * image.height:
        shape = f"{image.width} x {image.height} pixels"
        raise DataError(f"{shape}: too narrow to be enlarged to the image size and cropped; take data.fit pad")
    return halve(to_rgb(image), largest, inside)


def _raise_of_machine(error: Exception, name: str) -> None:
    """Raise DataError for what is no fault of the picture."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _MACHINE_ERRORS:
        raise DataError(f"{name}: the machine is out of memory or of open files ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "empty, or no picture format that Pillow knows"  # Pillow's own text holds a memory address
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (
        first_line(error) if isinstance(error, DataError | OSError) else f"{type(error).__name__}: {first_line(error)}"
    )
