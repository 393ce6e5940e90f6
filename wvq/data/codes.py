"""The code cache: pictures as rows of codes, with a header that says which tokenizer, crops and classes made them.

A cache is a folder with an Arrow table (written and read by `datasets`, memory-mapped) and ``header.json``. Row
``i * num_crops + c`` holds crop c of picture i; training and validation pictures are two tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from wvq.data.code_tables import CodeTable, finish_table, row_features, write_shard
from wvq.data.layout import is_layout, sequence_length
from wvq.errors import CacheError, first_line, near_match
from wvq.files.atomic import read_json, write_json

HEADER_NAME = "header.json"
SPLITS = ("train", "validation")


@dataclass
class CodeHeader:
    """What a code cache was made of.

    Args:
        tokenizer_hash: SHA-256 of the tokenizer's weights and config that make the codes; in caches of earlier versions
            of its weights alone.
        num_codes: codebook size K.
        grid: rows and columns of codes.
        layout: what each place of a row stands for, several codebooks or scales included (:mod:`wvq.data.layout`); one
            code a position of the grid if None, as in caches written before there was this field.
        image_size: side of the pictures, in pixels.
        crop_recipe: how each split was cropped.
        num_crops: versions of each training picture.
        class_names: in the order of the labels.
        source: the data set.
        num_images: pictures of each split.
        has_captions: whether rows carry captions.
        unreadable_pictures: pictures of each split that could not be read and have no rows; not in ``num_images``.
        psnr_rgb: mean over the rows checked after writing, decoded and held against their pictures, in dB.
        library_version: version of wvq that wrote the cache.
    """

    tokenizer_hash: str
    num_codes: int
    grid: list[int]
    image_size: int
    crop_recipe: dict[str, str]
    num_crops: int
    class_names: list[str]
    source: str
    num_images: dict[str, int]
    has_captions: bool
    library_version: str
    unreadable_pictures: dict[str, int] = field(default_factory=dict)
    psnr_rgb: dict[str, float] = field(default_factory=dict)
    layout: dict | None = None

    def __post_init__(self):
        if self.layout is None:
            self.layout = {"kind": "grid", "shapes": [self.grid]}

    @classmethod
    def read(cls, folder: str | Path) -> CodeHeader:
        """Read and check a cache's header.

        Raises:
            CacheError: no cache is there, or its header is damaged.
        """
        file = Path(folder) / HEADER_NAME
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
        header._check(file)
        return header

    def _check(self, file: Path) -> None:
        def positive(value) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value > 0

        def numbers(values) -> bool:
            return isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())

        sound = {
            "tokenizer_hash": isinstance(self.tokenizer_hash, str),
            "num_codes": positive(self.num_codes) and self.num_codes < 2**31,
            "grid": isinstance(self.grid, list) and len(self.grid) == 2 and all(map(positive, self.grid)),
            "layout": isinstance(self.grid, list) and is_layout(self.layout, self.grid),
            "image_size": positive(self.image_size),
            "num_crops": positive(self.num_crops),
            "class_names": isinstance(self.class_names, list)
            and all(isinstance(name, str) for name in self.class_names),
            "source": isinstance(self.source, str),
            "has_captions": isinstance(self.has_captions, bool),
            "library_version": isinstance(self.library_version, str),
            "num_images": numbers(self.num_images) and set(self.num_images) == set(SPLITS),
            "unreadable_pictures": numbers(self.unreadable_pictures),
            "psnr_rgb": numbers(self.psnr_rgb),
            "crop_recipe": isinstance(self.crop_recipe, dict),
        }
        for name, holds in sound.items():
            if not holds:
                raise CacheError(f"{file}: {name} has the value {getattr(self, name)!r}; export the codes again")

    def save(self, folder: str | Path) -> None:
        """Write ``header.json`` into a folder; it is complete or absent."""
        write_json(Path(folder) / HEADER_NAME, asdict(self))

    @property
    def sequence_length(self) -> int:
        """Codes of one picture, the length of a row."""
        return sequence_length(self.layout)


def write_rows(folder: Path, batches: Iterable[dict], header: CodeHeader) -> None:
    """Write one table of codes in one file; never more than a few thousand rows are in memory.

    Args:
        folder: new folder of the table.
        batches: dicts with ``codes`` (B, T) int64 in the order of the layout, or of any shape that flattens to it,
            ``label`` (B ints) and ``caption`` (B lists of strings, the captions of a picture).
        header: gives the type and the length of a row.
    """
    features, name = row_features(header.num_codes, header.sequence_length), "data-00000-of-00001.arrow"
    rows = write_shard(folder / name, batches, features)
    finish_table(folder, [name], features, f"{header.tokenizer_hash[:32]}-{rows}")


class CodeDataset(Dataset):
    """One split of a code cache as training data for a generator.

    Rows are read in place from memory-mapped files, which all processes of a machine share: the data set takes next to
    no memory of its own, and is pickled by its folder's name.

    An item is a picture; which of its crops is read follows from the seed and the position in the run, as in
    :class:`wvq.data.dataset.ImageDataset`. An integer key reads the first crop.

    Args:
        folder: the cache.
        split: ``train`` or ``validation``.
        seed: of the choice of crops.

    Raises:
        CacheError: the folder is no cache, or is damaged.
    """

    def __init__(self, folder: str | Path, split: str = "train", seed: int = 0):
        self.header = CodeHeader.read(folder)
        self.folder, self.split = Path(folder), split
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

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "split": self.split, "seed": self.seed}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self._table) // self.num_crops

    @property
    def labels(self) -> np.ndarray:
        """Class ids (rows,) int32 of all table rows, -1 for none; a copy."""
        return self._table.all_labels()

    def codes(self, rows: Sequence[int]) -> torch.Tensor:
        """Codes (N, T) int64 of table rows, in the order of the header's layout."""
        return torch.from_numpy(self._table.codes(rows, self.header.sequence_length))

    def label(self, index: int) -> int:
        """Class id of a picture, -1 for none."""
        return int(self._table.labels([index * self.num_crops])[0])

    def texts(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, at least one, which is "" where it has none; read from disk each time."""
        return self._table.captions(index * self.num_crops) if self.header.has_captions else ("",)

    def caption(self, index: int) -> str:
        """The first of them."""
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
        """The captions of consecutive pictures, of ``size`` pictures at a time."""
        for start in range(0, len(self), size):
            yield [self.texts(index) for index in range(start, min(start + size, len(self)))]


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of at most ``size`` items."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
