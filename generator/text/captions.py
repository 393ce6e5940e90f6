"""The captions of a code cache by number: equal ones are one text, and texts are read from the table when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

_DIGEST = 16  # bytes of a text's hash


class CaptionIndex:
    """Index of captions by their text. Memory holds two numbers a caption, and no text.

    While it is made, about 110 bytes a caption are needed for a time.

    Args:
        batches: captions of consecutive pictures, at least one each.
        read: the captions of one picture, by its number.

    Attributes:
        rows: (C,) the text of each of the C captions; texts are counted in the order in which they first appear.
        digest: hash of all texts in their order, as hex digits.
    """

    def __init__(self, batches: Iterable[Sequence[Sequence[str]]], read: Callable[[int], Sequence[str]]):
        self._read = read
        counts, digests = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.uint64)]
        for batch in batches:
            counts.append(np.array([len(texts) for texts in batch], np.int64))
            hashed = (hashlib.blake2b(text.encode(), digest_size=_DIGEST) for texts in batch for text in texts)
            digests.append(np.frombuffer(b"".join(h.digest() for h in hashed), np.uint64).reshape(-1, 2))
        per_picture, values = np.concatenate(counts), np.concatenate(digests)
        # A set with one caption a picture, as most are, needs no table of where each picture begins.
        single = bool((per_picture == 1).all())
        self._starts = None if single else np.concatenate([[0], np.cumsum(per_picture)])
        self.rows, self._first = _distinct(values)
        self.digest = hashlib.sha256(values[self._first].tobytes()).hexdigest()

    def __len__(self) -> int:
        """Number of different texts."""
        return len(self._first)

    def caption(self, number: int) -> str:
        """One of the C captions."""
        if self._starts is None:
            return self._read(number)[0]
        picture = int(np.searchsorted(self._starts, number, "right")) - 1
        return self._read(picture)[number - int(self._starts[picture])]

    def texts(self, rows: Iterable[int]) -> list[str]:
        """Texts by row."""
        return [self.caption(int(self._first[row])) for row in rows]

    def drawn(self, keys: Sequence[int | tuple[int, int]], seed: int) -> np.ndarray:
        """Numbers of one caption of each picture: drawn by the seed and its position in the run, or else the first.

        Args:
            keys: (position, picture) pairs, or pictures.
            seed: seed of the draw.

        Returns:
            (B,) int64 in [0, C).
        """
        pictures = np.array([key[1] if isinstance(key, tuple) else key for key in keys], np.int64)
        if self._starts is None:
            return pictures
        numbers, counts = self._starts[pictures], self._starts[pictures + 1] - self._starts[pictures]
        for i in np.flatnonzero(counts > 1).tolist():
            if isinstance(key := keys[i], tuple):
                numbers[i] += np.random.default_rng((seed, key[0], 1)).integers(counts[i])
        return numbers


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For values (C, 2): which different value each is (C,), and where each of them appears first, in that order."""
    kind = np.int32 if len(values) < 2**31 else np.int64
    order = np.lexsort((values[:, 1], values[:, 0])).astype(kind)  # stable: equal ones stay in their order
    ordered = values[order]
    new = np.ones(len(values), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    firsts = order[new]
    by_appearance = np.argsort(firsts)
    row_of = np.empty(len(firsts), kind)
    row_of[by_appearance] = np.arange(len(firsts), dtype=kind)
    rows = np.empty(len(values), kind)
    rows[order] = row_of[np.cumsum(new) - 1]
    return rows, firsts[by_appearance]
