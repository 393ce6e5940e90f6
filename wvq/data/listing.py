"""What lies in a folder: pictures, other files and folders, by their names and, without a known ending, first bytes."""

from __future__ import annotations

import contextlib
import functools
import mimetypes
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from wvq.errors import DataError

# Formats that Pillow opens and that are no pictures: documents, videos, measurements without a range, and containers
# which it hands to other programs.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
_FEW_FOLDERS = 16


@dataclass
class Listing:
    """The visible entries of one folder, each list sorted.

    Attributes:
        path: the folder.
        folders: names of the folders in it, without ``__MACOSX`` and the like, and without links to what it lies in.
        pictures: names of the pictures.
        others: names of other files.
        odd: names of what is neither file nor folder: pipes, sockets, devices.
    """

    path: str
    folders: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def picture_paths(self) -> list[str]:
        """Paths of the pictures."""
        return [os.path.join(self.path, name) for name in self.pictures]


def list_folder(path: str | os.PathLike[str]) -> Listing:
    """The entries of one folder; hidden ones are not there. A link that leads nowhere counts by its name.

    Raises:
        DataError: the folder cannot be read.
    """
    listing = Listing(os.fspath(path))
    known, other = _endings()
    try:
        with os.scandir(listing.path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if _is(entry, folder=True):
                    if not name.startswith("__") and not _leads_up(entry):
                        listing.folders.append(name)
                elif not _is(entry, folder=False) and not _leads_nowhere(entry):
                    listing.odd.append(name)
                else:
                    ending = os.path.splitext(name)[1].lower()
                    picture = ending in known or (ending not in other and is_picture(entry.path))
                    (listing.pictures if picture else listing.others).append(name)
    except OSError as error:
        raise DataError(f"{listing.path} cannot be read ({error.strerror or error})") from error
    for names in (listing.folders, listing.pictures, listing.others, listing.odd):
        names.sort()
    return listing


def look(path: str | os.PathLike[str]) -> list[Listing]:
    """The listings of a folder and of two levels below it.

    It looks into folders in folders only where these are few: a million pictures would be listed for nothing.

    Raises:
        DataError: a folder cannot be read.
    """
    listings = level = [list_folder(path)]
    for _ in range(2):
        level = [list_folder(os.path.join(listing.path, name)) for listing in level for name in listing.folders]
        listings = [*listings, *level]
        if len(level) > _FEW_FOLDERS:
            break
    return listings


def is_shard(name: str, kind: str) -> bool:
    """Whether a name or path is that of a ``tar`` or ``parquet`` file of a data set.

    Other programs put their own notes into files with a leading ``_``.
    """
    return name.lower().endswith(f".{kind}") and not os.path.basename(name).startswith("_")


def walk(path: str | os.PathLike[str]) -> Iterator[Listing]:
    """The listings of a folder and of those below it, in sorted order; links are followed, each folder once.

    Raises:
        DataError: a folder cannot be read.
    """
    visited, ahead = set(), [os.fspath(path)]
    while ahead:
        folder = ahead.pop()
        real = os.path.realpath(folder)
        if real not in visited:
            visited.add(real)
            listing = list_folder(folder)
            yield listing
            ahead += [os.path.join(folder, name) for name in reversed(listing.folders)]


def is_picture(file: str) -> bool:
    """Whether the first bytes of a file are those of a picture that Pillow opens."""
    with contextlib.suppress(Exception), warnings.catch_warnings():  # decoders raise errors of many kinds
        warnings.simplefilter("ignore")
        with contextlib.suppress(Image.DecompressionBombError):
            Image.open(file, formats=_recognized()).close()
        return True
    return False


def _is(entry: os.DirEntry[str], folder: bool) -> bool:
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:  # a link to itself
        return False


def _leads_up(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to a folder that it lies in."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(entry.path))]) == target


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


@functools.cache
def _endings() -> tuple[frozenset[str], frozenset[str]]:
    """Endings of pictures, and those of other files; files with any other ending are looked at."""
    Image.init()
    pictures = {
        ending
        for ending, form in Image.registered_extensions().items()
        if form in Image.OPEN and form not in _NO_PICTURES
    }
    types = mimetypes.MimeTypes().types_map[True]  # those that Python knows on every machine
    kinds = ("text/", "audio/", "video/", "application/")
    others = {ending for ending, kind in types.items() if kind.startswith(kinds) and kind != _UNSPECIFIC} - pictures
    others |= {ending for ending, form in Image.registered_extensions().items() if form in _NO_PICTURES}
    others |= _BESIDE_PICTURES
    return frozenset(pictures - _BESIDE_PICTURES), frozenset(others)


_UNSPECIFIC = "application/octet-stream"
# Files that lie beside pictures in great numbers and are not among these types; .pfm holds depths and flows.
_BESIDE_PICTURES = {".caption", ".cls", ".gz", ".jsonl", ".md", ".mat", ".npy", ".npz", ".parquet", ".pfm", ".pkl"}
_BESIDE_PICTURES |= {".pt", ".safetensors", ".yaml", ".yml"}
# Raw photographs, of which Pillow would open the small preview.
_BESIDE_PICTURES |= {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"}


@functools.cache
def _recognized() -> list[str]:
    """Formats that begin with bytes of their own; the others take almost any file for theirs."""
    Image.init()
    return [form for form, (_, accept) in Image.OPEN.items() if accept is not None and form not in _NO_PICTURES]
