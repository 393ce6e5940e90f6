"""Token files: the codes of pictures as other projects keep them, read one picture after the other.

| kind | files | a picture |
|---|---|---|
| ``npy`` | a folder ``*_codes`` of ``0.npy``, ``1.npy``, ... and the folder ``*_labels`` beside it (LlamaGen) | codes [1, crops, T] or [crops, T], and its class |
| ``tar`` | a tar of ``class/picture.npy`` (RandAR) | codes [crops, T]; its folder is its class |
| ``jsonl`` | lines of ``{"class_id": ..., "tokens": [...]}`` (RAR) | one line, or as many as it has crops |
"""  # noqa: E501  # a table

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wvq.checks import is_integer
from wvq.data.shard_rows import refuse_cut_short
from wvq.errors import DataError, first_line
from wvq.files.reading import parse_json

_NUMBERED = re.compile(r"(\d{1,12})\.npy")
_LONGEST_LINE = 2**22  # bytes; a line of 4,096 tokens has some 30,000
_LARGEST_FILE = 2**24  # bytes of one picture in a tar
_HIGHEST_CLASS = 2**20  # ids above are no classes, and names for all below them would be made


@dataclass(frozen=True)
class TokenPicture:
    """One picture of token files.

    Attributes:
        name: what messages call it, and what it is found by.
        codes: (crops, T) int64.
        label: its class id.
    """

    name: str
    codes: npt.NDArray[np.int64]
    label: int


class TokenFiles(ABC):
    """Pictures in token files of one kind; an instance has looked through the files once.

    Attributes:
        num_codes: size K of the codebook that files of this kind usually come from.
        count: how many pictures there are.
        class_names: names of the classes, where the files name them; else empty.
    """

    num_codes: int = 16_384
    count: int
    class_names: list[str]

    @abstractmethod
    def read(self, chosen: npt.NDArray[np.bool_]) -> Iterator[TokenPicture]:
        """The chosen pictures in order; the others are not read.

        Args:
            chosen: (count,) whether a picture is.

        Raises:
            DataError: a file is missing, damaged, or holds something else.
        """

    @abstractmethod
    def picture_files(self, names: list[str], pictures: Path) -> list[Path]:
        """The files that pictures of these names were made of.

        Args:
            names: of :class:`TokenPicture`.
            pictures: folder with a folder of pictures for each class.

        Raises:
            DataError: they are not there, or cannot be told.
        """


class NpyFolder(TokenFiles):
    """Codes in ``0.npy``, ``1.npy``, ... of one folder, classes under the same names in another.

    Args:
        codes, labels: the folders.

    Raises:
        DataError: a folder is missing, other files lie in it, or the two do not match.
    """

    def __init__(self, codes: Path, labels: Path):
        self.codes, self.labels = codes, labels
        self.numbers = self._numbered(codes)
        others = self._numbered(labels)
        if not np.array_equal(self.numbers, others):
            lacking = np.setdiff1d(self.numbers, others)
            folder, number = (labels, lacking[0]) if len(lacking) else (codes, np.setdiff1d(others, self.numbers)[0])
            raise DataError(f"{folder} lacks {number}.npy: codes and labels must have the same numbers")
        self.count, self.class_names = len(self.numbers), []

    @staticmethod
    def _numbered(folder: Path) -> npt.NDArray[np.int64]:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; codes in NAME_codes need their classes in NAME_labels beside it")
        numbers = []
        for file in folder.iterdir():
            if file.name.startswith("."):
                continue
            if (match := _NUMBERED.fullmatch(file.name)) is None:
                raise DataError(f"{file} is no token file (0.npy, 1.npy, ...); move it away")
            numbers.append(int(match[1]))
        if not numbers:
            raise DataError(f"{folder} holds no token files (0.npy, 1.npy, ...)")
        return np.sort(np.array(numbers, np.int64))

    def read(self, chosen: npt.NDArray[np.bool_]) -> Iterator[TokenPicture]:
        for number in self.numbers[chosen].tolist():
            file, label = self.codes / f"{number}.npy", self.labels / f"{number}.npy"
            values = _array(_content(label), label)
            if values.size != 1:
                raise DataError(f"{label} must hold the class of one picture, and has the shape {values.shape}")
            codes = _crops(_array(_content(file), file), file)
            yield TokenPicture(str(file), codes, _class(int(values.item()), label))

    def picture_files(self, names: list[str], pictures: Path) -> list[Path]:
        # Their numbers count the pictures class by class, both in the order of their names, as torchvision's
        # ImageFolder lists them.
        from torchvision.datasets.folder import IMG_EXTENSIONS

        numbers = [int(Path(name).stem) for name in names]
        files = [
            Path(root, name)
            for folder in _folders(pictures)
            for root, _, found in sorted(os.walk(folder, followlinks=True))
            for name in sorted(found)
            if name.lower().endswith(IMG_EXTENSIONS)
        ]
        if (last := max(numbers)) >= len(files):
            raise DataError(f"{pictures} holds {len(files):,} pictures in folders of classes, none of number {last}")
        return [files[number] for number in numbers]


class TokenTar(TokenFiles):
    """Codes in a tar of ``class/picture.npy``; classes are numbered in the order of their names, or are numbers.

    Args:
        file: the tar.

    Raises:
        DataError: it is no tar, or cut short; or another file or a picture without class is in it.
    """

    def __init__(self, file: Path):
        self.file, self.count = file, 0
        refuse_cut_short(str(file))
        folders: set[str] = set()
        with tarfile.open(file, "r:") as tar:
            for member in self._members(tar):
                folders.add(self._folder(member))
                self.count += 1
        if not self.count:
            raise DataError(f"{file} holds no .npy files")
        numbers = all(re.fullmatch(r"\d{1,9}", name) for name in folders)
        self.class_names = [] if numbers else sorted(folders)
        self._ids = {name: number for number, name in enumerate(self.class_names)}
        if numbers:
            self._ids = {name: _class(int(name), file) for name in folders}

    def _folder(self, member: tarfile.TarInfo) -> str:
        folder, _, name = member.name.rpartition("/")
        if not name.endswith(".npy"):
            raise DataError(f"{self.file}: {member.name} is no .npy file; take it out")
        if not folder.strip("./"):
            raise DataError(f"{self.file}: {member.name} lies in no folder that names its class")
        return folder.rpartition("/")[2]

    def _members(self, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """The files in an open tar one by one, without what the library would keep of each."""
        try:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # the stubs know its method alone
                if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    yield member
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{self.file} cannot be read as a tar ({first_line(error)}); fetch it again") from error

    def read(self, chosen: npt.NDArray[np.bool_]) -> Iterator[TokenPicture]:
        with tarfile.open(self.file, "r:") as tar:
            for taken, member in zip(chosen, self._members(tar), strict=True):
                if not taken:
                    continue
                name = f"{self.file}: {member.name}"
                stream = tar.extractfile(member)
                if stream is None or member.size > _LARGEST_FILE:
                    raise DataError(f"{name} is larger than {_LARGEST_FILE // 2**20} MiB: no codes of a picture")
                codes = _crops(_array(stream.read(), name), name)
                yield TokenPicture(name, codes, self._ids[self._folder(member)])

    def picture_files(self, names: list[str], pictures: Path) -> list[Path]:
        files = []
        for name in names:
            member = Path(name.removeprefix(f"{self.file}: "))
            folder, stem = member.parent.name, member.stem
            found = [file for file in pictures.glob(f"{glob.escape(folder)}/{glob.escape(stem)}.*") if file.is_file()]
            if len(found) != 1:
                raise DataError(f"{pictures} holds {len(found)} files {folder}/{stem}.*, and not one")
            files += found
        return files


class TokenLines(TokenFiles):
    """Codes as lines of JSON; each picture is as many lines, one after the other, as it has crops.

    Args:
        file: the lines.
        num_crops: lines of a picture.

    Raises:
        DataError: the file is empty, or its lines do not make whole pictures.
    """

    num_codes = 1_024

    def __init__(self, file: Path, num_crops: int = 1):
        self.file, self.num_crops, self.class_names = file, num_crops, []
        lines = sum(1 for _ in self._lines())
        if not lines or lines % num_crops:
            raise DataError(f"{file} holds {lines:,} lines, which are no pictures of {num_crops} each; set num_crops")
        self.count = lines // num_crops

    def _lines(self) -> Iterator[bytes]:
        with self.file.open("rb") as opened:
            while line := opened.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise DataError(f"{self.file} has a line of more than {_LONGEST_LINE // 2**20} MiB: no token file")
                if line.strip():
                    yield line

    def read(self, chosen: npt.NDArray[np.bool_]) -> Iterator[TokenPicture]:
        lines = self._lines()
        for number, taken in enumerate(chosen):
            first = number * self.num_crops + 1
            parts = list(islice(lines, self.num_crops))
            if not taken:
                continue
            rows = [self._row(line, f"{self.file}, line {first + place:,}") for place, line in enumerate(parts)]
            labels, codes = {label for label, _ in rows}, [tokens for _, tokens in rows]
            where = f"{self.file}, line {first:,}"
            if self.num_crops > 1:
                where = f"{self.file}, lines {first:,} to {first + len(parts) - 1:,}"
            if len(labels) > 1:
                raise DataError(f"{where} are of several classes, and not the crops of one picture; set num_crops")
            if len({len(tokens) for tokens in codes}) > 1:
                raise DataError(f"{where} hold different numbers of tokens")
            yield TokenPicture(where, np.stack(codes), labels.pop())

    @staticmethod
    def _row(line: bytes, where: str) -> tuple[int, npt.NDArray[np.int64]]:
        try:
            row = parse_json(line.decode("utf-8-sig"))
            label, tokens = row["class_id"], np.asarray(row["tokens"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{where} is no {{"class_id": ..., "tokens": [...]}} ({first_line(error)})') from None
        if not is_integer(label, 0) or tokens.ndim != 1 or not len(tokens) or tokens.dtype.kind not in "iu":
            raise DataError(f"{where} must hold a class_id and a list of tokens, all whole numbers")
        return _class(label, where), tokens.astype(np.int64)

    def picture_files(self, names: list[str], pictures: Path) -> list[Path]:
        raise DataError(f"{self.file} does not say of which pictures its lines are; leave pictures out")


def find_token_files(path: Path, num_crops: int = 1) -> TokenFiles:
    """The token files that a path names: of a tar, lines of JSON, or a folder of codes or of codes and labels.

    Args:
        path: the file or folder.
        num_crops: lines of a picture in lines of JSON.

    Raises:
        DataError: it holds none, or damaged ones.
    """
    if path.is_file() and path.suffix == ".jsonl":
        return TokenLines(path, num_crops)
    if num_crops > 1:
        raise DataError(f"num_crops is for lines of JSON, and {path} is no .jsonl file; leave it out")
    if path.is_file() and path.suffix == ".tar":
        return TokenTar(path)
    if path.is_dir():
        folders = [path] if path.name.endswith("_codes") else sorted(path.glob("*_codes"))
        if len(folders) == 1:
            codes = folders[0]
            return NpyFolder(codes, codes.with_name(codes.name.removesuffix("_codes") + "_labels"))
        if folders:
            raise DataError(f"{path} holds {len(folders)} folders of codes ({folders[0].name}, ...); give one")
    raise DataError(f"{path} holds no token files: neither a folder NAME_codes beside NAME_labels, a .tar nor a .jsonl")


def _folders(pictures: Path) -> list[Path]:
    """The folders of classes in a folder of pictures, in the order of their names."""
    folders = sorted(folder for folder in pictures.iterdir() if folder.is_dir()) if pictures.is_dir() else []
    if not folders:
        raise DataError(f"pictures: {pictures} holds no folders of classes")
    return folders


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from None


def _class(label: int, where: object) -> int:
    if not 0 <= label <= _HIGHEST_CLASS:
        raise DataError(f"{where} is of class {label}, and classes are numbered from 0 to {_HIGHEST_CLASS:,} at most")
    return label


def _array(content: bytes, where: object) -> npt.NDArray[np.int64]:
    """The whole numbers in an ``.npy`` file; nothing else is read from it."""
    try:
        values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, OverflowError, MemoryError) as error:  # the last two: by its header alone
        raise DataError(f"{where} is no array of numbers ({first_line(error)})") from None
    if values.dtype.kind not in "iu":
        raise DataError(f"{where} must hold whole numbers")
    return values.astype(np.int64)


def _crops(values: npt.NDArray[np.int64], where: object) -> npt.NDArray[np.int64]:
    """Codes (crops, T) of one picture."""
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or not values.size:
        raise DataError(f"{where} must hold the codes [crops, T] of one picture, and has the shape {values.shape}")
    return values
