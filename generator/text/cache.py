"""Text features of a code cache's captions: the valid tokens only, in half precision, beside the codes or in memory.

``<codes>/text/<key>`` holds, for N texts in parts of as many texts each:

    tokens-00000.npy, ...   (T, E) float16: the features of the valid tokens of consecutive texts
    counts-00000.npy, ...   (n,) int32: how many of them each text has; written after its tokens
    offsets.npy             (N + 1,) int64: where each text begins among all tokens
    features.json           the sizes above; written last

Files are complete or absent, and parts that are there are not encoded again, so an encoding that was cut short goes
on where it stopped. The key is a hash of the encoder's identity, the length and the texts, so features of other
texts or encoders are never taken for these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wvq.errors import CacheError, CheckpointError
from wvq.files.atomic import read_json, whole_file, write_json
from wvq.generator.text.captions import CaptionIndex
from wvq.generator.text.encoder import TextEncoder

BATCH = 64  # texts encoded at once
HEADER_NAME = "features.json"
_MOST_PARTS = 256  # enough for the processes to share; more only where a part would be too large
_MOST_BYTES = 2**32  # of a part
_FORMAT = 2  # of the files; the first held padding too

EncodedPart = tuple[np.ndarray, np.ndarray]  # features (T, E) of the valid tokens of n texts, and their numbers (n,)


@dataclass(frozen=True)
class PartSizes:
    """How N texts of at most ``length`` tokens of width ``dim`` are cut into parts, for any number of processes."""

    count: int
    length: int
    dim: int

    @property
    def texts(self) -> int:
        """Texts of a part, whole batches; the last part may have fewer."""
        batches = -(-self.count // (_MOST_PARTS * BATCH))
        return BATCH * max(1, min(batches, _MOST_BYTES // (2 * BATCH * self.length * self.dim)))

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.count // self.texts)

    def rows(self, part: int) -> range:
        """The texts of a part."""
        return range(part * self.texts, min((part + 1) * self.texts, self.count))


class TextFeatures:
    """Features of N texts by row, padded on the left when they are read.

    Args:
        tokens: for each part (T, E) float16, the features of its valid tokens.
        offsets: (N + 1,) where each text begins among the tokens of all parts.
        sizes: how the texts are cut into parts.
        folder: where it can be opened again, for loader processes that do not share memory; None if in memory only.
    """

    def __init__(self, tokens: list[np.ndarray], offsets: np.ndarray, sizes: PartSizes, folder: Path | None = None):
        self.tokens, self.offsets, self.sizes, self.folder = tokens, offsets, sizes, folder

    def __len__(self) -> int:
        return self.sizes.count

    def __getitem__(self, rows: int | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (..., L, E) float16, 0 in the padding, and masks (..., L) bool."""
        if isinstance(rows, np.ndarray) and rows.ndim:
            return self._padded(rows)
        features, mask = self._padded(np.array([rows]))
        return features[0], mask[0]

    def _padded(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        length = self.sizes.length
        starts = np.asarray(self.offsets[rows])
        counts = np.asarray(self.offsets[rows + 1]) - starts
        mask = np.arange(length) >= length - counts[:, None]
        features = np.zeros((len(rows) * length, self.sizes.dim), np.float16)
        places = np.flatnonzero(mask)  # of all tokens of the batch, one text after the other
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        parts = rows // self.sizes.texts
        within_part = np.repeat(starts - self.offsets[parts * self.sizes.texts], counts) + within
        order = np.argsort(np.repeat(parts, counts), kind="stable")
        needed, first = np.unique(np.repeat(parts, counts)[order], return_index=True)
        for part, chosen in zip(needed, np.split(order, first[1:]), strict=False):
            features[places[chosen]] = self.tokens[part][within_part[chosen]]
        return torch.from_numpy(features).view(len(rows), length, -1), torch.from_numpy(mask)

    def __reduce__(self):
        if self.folder is None:
            return TextFeatures, (self.tokens, self.offsets, self.sizes)
        return open_features, (self.folder,)  # pickling would copy a memory map as a whole


def features_key(texts: CaptionIndex, encoder: TextEncoder) -> str:
    """Hash of all that the features depend on; 16 hex digits."""
    parts = [_FORMAT, encoder.identity(), encoder.length, texts.digest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def encode_part(texts: list[str], encoder: TextEncoder) -> EncodedPart:
    """Features (T, E) float16 of the valid tokens of some texts, and how many (n,) int32 each of them has.

    Raises:
        CheckpointError: half precision cannot hold the features.
    """
    tokens, counts = [np.zeros((0, encoder.dim), np.float16)], []
    for states, mask in encoder.stream(texts, BATCH):
        part = states[mask].half()
        if not part.isfinite().all():
            raise CheckpointError(
                f"{encoder.name}: its features go beyond what half precision holds; set condition.text_cache none"
            )
        tokens.append(part.cpu().numpy())
        counts.append(mask.sum(1).int().cpu().numpy())
    return np.concatenate(tokens), np.concatenate(counts)


def join_parts(parts: Sequence[EncodedPart], sizes: PartSizes) -> TextFeatures:
    """The features in memory."""
    return TextFeatures([tokens for tokens, _ in parts], _offsets(counts for _, counts in parts), sizes)


def missing_parts(folder: Path, sizes: PartSizes) -> list[int]:
    """Numbers of the parts that are not written yet."""
    return [part for part in range(sizes.parts) if not _file(folder, "counts", part).is_file()]


def write_part(folder: Path, part: int, tokens: np.ndarray, counts: np.ndarray) -> None:
    """Write a part; its second file marks it as complete."""
    for name, values in (("tokens", tokens), ("counts", counts)):
        with whole_file(_file(folder, name, part)) as partial, partial.open("wb") as stream:
            np.save(stream, values)


def finish(folder: Path, sizes: PartSizes) -> None:
    """Write the files that mark all parts as complete."""
    with whole_file(folder / "offsets.npy") as partial, partial.open("wb") as stream:
        np.save(stream, _offsets([np.load(_file(folder, "counts", part)) for part in range(sizes.parts)]))
    write_json(folder / HEADER_NAME, {"texts": sizes.count, "length": sizes.length, "dim": sizes.dim})


def open_features(folder: Path) -> TextFeatures:
    """Features on disk, through memory maps.

    Raises:
        CacheError: a file is missing or damaged.
    """
    header = read_json(folder / HEADER_NAME, CacheError, f"{folder} holds no text features")
    try:
        sizes = PartSizes(header["texts"], header["length"], header["dim"])
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        tokens = [_mapped(_file(folder, "tokens", part)) for part in range(sizes.parts)]
    except (OSError, KeyError, ValueError) as error:
        raise CacheError(f"text features in {folder} cannot be read ({error}); remove that folder") from error
    if len(offsets) != sizes.count + 1 or sum(map(len, tokens)) != offsets[-1]:
        raise CacheError(f"text features in {folder} have another length than their header; remove that folder")
    return TextFeatures(tokens, offsets, sizes, folder)


def _file(folder: Path, name: str, part: int) -> Path:
    return folder / f"{name}-{part:05d}.npy"


def _offsets(counts: Iterable[np.ndarray]) -> np.ndarray:
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))


def _mapped(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except ValueError:  # empty, as where all captions of a part are; or damaged, which is raised again
        return np.load(file)
