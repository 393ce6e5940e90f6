"""The code cache: pictures as rows of codes, with a header that names their tokenizer, crops and classes.

A cache is a folder with an Arrow table (written and read by `datasets`, memory-mapped) and ``header.json``. Row
``i * num_crops + c`` holds crop c of picture i; training and validation pictures are two tables.
``data_fingerprint.json`` says which pictures they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from wvq.checks import FLAG, PATH, TEXT, Checker, integer, is_integer
from wvq.data.code_tables import CodeTable
from wvq.data.layout import is_layout, sequence_length
from wvq.errors import CacheError, ConfigError, first_line, near_match
from wvq.files.atomic import read_json, write_json
from wvq.files.user_folders import expand_user
from wvq.settings.size import SIZE, Size

HEADER_NAME = "header.json"
SPLITS = ("train", "validation")


@dataclass
class CodeHeader:
    """What a code cache holds, and how it was made.

    Args:
        tokenizer_hash: SHA-256 of the tokenizer's weights and config that make the codes; in caches of earlier versions
            of its weights alone; empty where the codes were imported without their tokenizer.
        num_codes: codebook size K.
        grid: rows and columns of codes.
        layout: what each place of a row stands for, several codebooks or scales included (:mod:`wvq.data.layout`); one
            code a position of the grid if empty, as in caches written before there was this field.
        image_size: size of the pictures, in pixels: the side of a square, or [height, width].
        crop_recipe: how each split was cropped.
        num_crops: versions of each training picture.
        class_names: in the order of the labels.
        source: the data set.
        num_images: pictures of each split.
        has_captions: whether rows carry captions.
        unreadable_pictures: pictures of each split that could not be read and have no rows; not in ``num_images``.
        psnr_rgb: mean over the rows that were decoded and compared with their pictures after writing, in dB.
        library_version: version of wvq that wrote the cache.
    """

    tokenizer_hash: str
    num_codes: int
    grid: list[int]
    image_size: Size
    crop_recipe: dict[str, str]
    num_crops: int
    class_names: list[str]
    source: str
    num_images: dict[str, int]
    has_captions: bool
    library_version: str
    unreadable_pictures: dict[str, int] = field(default_factory=dict)
    psnr_rgb: dict[str, float] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layout:
            self.layout = {"kind": "grid", "shapes": [self.grid]}

    @classmethod
    def read(cls, folder: str | Path) -> CodeHeader:
        """Read and check a cache's header.

        Raises:
            CacheError: no cache is there, or its header is damaged.
        """
        folder = expand_user(folder, "codes", PATH)
        file = folder / HEADER_NAME
        values = read_json(
            file, CacheError, f"{folder} is no code cache ({HEADER_NAME} is missing); make one with export-codes"
        )
        names = {f.name for f in fields(cls)}
        if (names - {"psnr_rgb", "unreadable_pictures", "layout"}) - values.keys():
            raise CacheError(f"{file} lacks fields of a code cache's header; export the codes again")
        for name in values:
            if name not in names:
                raise CacheError(f'{file} has the unknown field "{name}"{near_match(name, names)}')
        header = cls(**values)
        try:
            header.check()
        except ConfigError as error:
            raise CacheError(f"{file}: {error}; export the codes again") from None
        return header

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is not one that an export writes."""
        check = Checker(self)
        check.each(TEXT, "tokenizer_hash", "source", "library_version")
        check.each(integer(), "num_codes", "num_crops")
        check.each(SIZE, "image_size")
        check("num_codes", "below 2**31", lambda value: value < 2**31)
        check("grid", "two integers of at least 1", _is_grid)
        check("layout", "a layout of codes that ends on the grid", lambda value: is_layout(value, self.grid))
        check("class_names", "a list of names", _are_names)
        check.each(FLAG, "has_captions")
        check("crop_recipe", "texts by split", lambda value: isinstance(value, dict))
        for name in ("num_images", "unreadable_pictures", "psnr_rgb"):
            check(name, "numbers by split", _are_numbers)
        check("num_images", f"numbers of {' and '.join(SPLITS)}", lambda value: set(value) == set(SPLITS))

    def save(self, folder: str | Path) -> None:
        """Write ``header.json`` into a folder; it is complete or absent."""
        write_json(Path(folder) / HEADER_NAME, asdict(self))

    @property
    def sequence_length(self) -> int:
        """Codes of one picture, the length of a row."""
        return sequence_length(self.layout)

    def summary(self) -> str:
        """How many pictures, classes and captions there are, in one line."""
        train, validation = (self.num_images[split] for split in SPLITS)
        crops = f" in {self.num_crops} crops each" if self.num_crops > 1 else ""
        classes = f"{len(self.class_names):,} class{'es' if len(self.class_names) > 1 else ''}"
        return (
            f"codes: {train:,} training pictures{crops}, {validation:,} held out; "
            f"{classes if self.class_names else 'no classes'}; {'captions' if self.has_captions else 'no captions'}"
        )


def _is_grid(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_integer, value))


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int | float) for number in value.values())


class CodeDataset(Dataset[dict[str, torch.Tensor]]):
    """One split of a code cache as training data for a generator.

    Rows are read in place from memory-mapped files, which all processes of a machine share: the data set takes next to
    no memory of its own, and is pickled by its folder's name.

    An item is a picture; which of its crops is read follows from the seed and the position in the run, as in
    :class:`wvq.data.dataset.ImageDataset`. An integer key reads the first crop.

    Args:
        folder: the cache.
        split: ``train`` or ``validation``.
        seed: decides the choice of crops.

    Raises:
        CacheError: the folder is no cache, or is damaged.
    """

    def __init__(self, folder: str | Path, split: str = "train", seed: int = 0):
        self.header = CodeHeader.read(folder)
        self.folder, self.split = expand_user(folder, "codes", PATH), split
        self.seed = seed
        self.num_crops = self.header.num_crops if split == "train" else 1
        try:
            self._table = CodeTable(self.folder / split)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            reason = first_line(error)
            raise CacheError(f"{folder}/{split} cannot be read ({reason}); export the codes again") from error
        rows, expected = len(self._table), self.header.num_images[split] * self.num_crops
        if rows != expected:
            raise CacheError(f"{folder}/{split} holds {rows} rows, not {expected}; export the codes again")
        if self._table.num_codes != rows * self.header.sequence_length:
            raise CacheError(
                f"{folder}/{split} holds {self._table.num_codes} codes, not {self.header.sequence_length} in each of "
                f"{rows} rows; export the codes again"
            )

    def __reduce__(self) -> tuple[type[CodeDataset], tuple[Path, str, int]]:
        return type(self), (self.folder, self.split, self.seed)  # opened again where it is unpickled

    def __len__(self) -> int:
        return len(self._table) // self.num_crops

    @property
    def labels(self) -> np.ndarray:
        """Class ids (rows,) int32 of all table rows, -1 for none; a copy."""
        return self._table.all_labels()

    def codes(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Codes (N, T) int64 of table rows, in the order of the header's layout."""
        return torch.from_numpy(self._table.codes(rows, self.header.sequence_length))

    def label(self, index: int) -> int:
        """Class id of a picture, -1 for none."""
        return int(self._table.labels([index * self.num_crops])[0])

    def texts(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, at least one, which is "" where it has none; read from disk each time."""
        return self._table.captions(index * self.num_crops) if self.header.has_captions else ("",)

    def caption(self, index: int) -> str:
        """The first caption of a picture, "" where it has none."""
        return self.texts(index)[0]

    def unigram_entropy(self) -> float:
        """Entropy of the code histogram in nats: the loss of a generator that knows frequencies only."""
        counts = np.zeros(self.header.num_codes, np.int64)
        for codes in self._table.parts():
            counts += np.bincount(codes, minlength=self.header.num_codes)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
        batch = self.batch(keys)
        return [{name: values[i] for name, values in batch.items()} for i in range(len(keys))]

    def batch(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The items of several keys, stacked: ``codes`` (B, T), ``label`` (B,) and ``index`` (B,), int64."""
        pairs = [key if isinstance(key, tuple) else (None, key) for key in keys]
        indices = np.array([index for _, index in pairs])
        crops = np.array([self._crop(position) for position, _ in pairs])
        rows = indices * self.num_crops + crops
        labels = torch.from_numpy(self._table.labels(rows))
        return {"codes": self.codes(rows), "label": labels, "index": torch.from_numpy(indices)}

    def _crop(self, position: int | None) -> int:
        if position is None or self.num_crops == 1:
            return 0
        return int(np.random.default_rng((self.seed, position)).integers(self.num_crops))

    def caption_batches(self, size: int) -> Iterator[list[tuple[str, ...]]]:
        """All captions in order, those of ``size`` pictures at a time."""
        for start in range(0, len(self), size):
            yield [self.texts(index) for index in range(start, min(start + size, len(self)))]
