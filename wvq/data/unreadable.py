"""Pictures that cannot be read: left out of one pass over a set, counted over a training run, reported, or too many."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, SupportsInt

import numpy as np
import torch
from torch.utils.data import Dataset

from wvq.data.loading import Attempts, FileSet, PictureSet, Streamed, chunked, read_chunks, regrouped, share_of
from wvq.distributed import gather_objects, is_main_process
from wvq.errors import DataError

# More unreadable pictures than both mean a broken data set, not a few broken files.
MOST_COUNT, MOST_SHARE = 10, 0.05
ENOUGH_DRAWN = 1_000  # fewer random pictures than this are too few to estimate a share of 5 %
PROBED = 64
_NAMED = 3


class Reading:
    """One pass over pictures of a set in a given order; those that cannot be read are left out, never replaced.

    Iterated, it gives items and reads in this process; :meth:`batches` reads in loader processes.

    Args:
        dataset: an :class:`wvq.data.dataset.ImageDataset`, or another set of pictures.
        keys: which pictures, in this order; all if not given.
        limit: stop after this many readable pictures.
        num_workers: loader processes; :func:`wvq.hardware.loader_processes` decides if None.

    Attributes:
        used: indices of the pictures that were read, in order.
        left_out: file name and reason of each picture left out, by index.

    Raises:
        UnreadablePictureError: on iteration, where the data set refuses unreadable pictures.
    """

    def __init__(
        self,
        dataset: PictureSet | Streamed,
        keys: Iterable[SupportsInt] | None = None,
        limit: int | None = None,
        num_workers: int | None = None,
    ):
        self.dataset = dataset
        self.keys = share_of(dataset) if keys is None else keys
        self.limit = limit
        self.num_workers = num_workers
        self.used: list[int] = []
        self.left_out: dict[int, str] = {}

    @property
    def looked_at(self) -> int:
        """The pictures that were read or left out so far."""
        return len(self.used) + len(self.left_out)

    @property
    def _is_over(self) -> bool:
        return len(self.used) == self.limit

    def __iter__(self) -> Iterator[dict[str, Any]]:
        attempts = Attempts(self.dataset)
        if self._is_over:
            return
        for key in self.keys:
            number, item, failure = attempts[key]
            self._take(number, failure)
            if item is not None:
                yield item
            if self._is_over:
                return

    def batches(self, size: int, device: str | torch.device = "cpu") -> Iterator[dict[str, torch.Tensor]]:
        """The same items, stacked, ``size`` at a time (the last ones may be fewer), the pixels on ``device``."""
        keys = self.keys
        if isinstance(self.dataset, FileSet) and self.dataset.unreadable == "refuse":
            # Nothing is left out, so later ones need not be read.
            keys = keys[: self.limit] if isinstance(keys, Sequence) else islice(keys, self.limit)
        return regrouped(self._chunks(chunked(keys, size), device), size)

    def _chunks(
        self, chunks: Iterable[list[SupportsInt]], device: str | torch.device
    ) -> Iterator[dict[str, torch.Tensor]]:
        with contextlib.closing(read_chunks(self.dataset, chunks, device, self.num_workers)) as batches:
            for batch, attempted in batches:
                # Pictures after the last one needed were read ahead, and do not count.
                taken = [self._take(number, failure) for number, failure in attempted if not self._is_over]
                if any(taken):
                    yield {name: values[: sum(taken)] for name, values in batch.items()}
                if self._is_over:
                    return

    def _take(self, number: int, failure: str | None) -> bool:
        if failure is None:
            self.used.append(number)
        else:
            self.left_out[number] = failure
        return failure is None

    def refuse_too_many(self) -> None:
        """Raise DataError if more pictures had to be left out than a sound set has; to be called after the pass."""
        refuse_too_many(self.left_out.values(), self.looked_at)

    def warnings(self, task: str) -> list[str]:
        """Warnings for a result about the pictures left out of ``task``: one line, or none."""
        return [f"{summary(self.left_out.values(), self.looked_at)}; left out of {task}"] if self.left_out else []


class DrawnPictures:
    """The pictures that a training run requested and that could not be read, as its batches show them.

    A batch holds ``requested`` and ``index``, so that loader processes need not report back; that of a stream also why
    its pictures could not be read. A picture counts once, however often it is drawn.

    Args:
        dataset: the training set; one that reads no files is not watched.

    Attributes:
        failures: file name and reason by index; of this process, after :meth:`merge` of the others too, and of the part
            of a resumed run that came before.
    """

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset if isinstance(dataset, FileSet) else None
        self.failures: dict[int, str] = {}
        self._own: dict[int, str] = {}
        self._drawn = 0
        self._length = len(dataset) if isinstance(dataset, Sized) else None

    def observe(self, batch: dict[str, Any]) -> None:
        """Count the replaced pictures of a batch on the CPU; warn of the first one.

        Raises:
            DataError: too many of the pictures drawn by this process cannot be read.
        """
        if self.dataset is None:
            return
        self._drawn += len(batch["index"])
        pairs = zip(batch["requested"].tolist(), batch["index"].tolist(), strict=True)
        for place, (requested, used) in enumerate(pairs):
            if requested == used or requested in self._own:
                continue
            known = batch["failures"][place] if "failures" in batch else self.dataset.store.failure(requested)
            self._own[requested] = known
            if not self.failures:
                warnings.warn(
                    f"{self._own[requested]} cannot be read: in training another picture takes its place, as for any "
                    "other such file; their number is reported at the end",
                    stacklevel=2,
                )
            self.failures[requested] = self._own[requested]
        # Each pass over the data is shuffled: what was drawn so far is a fair sample of the set.
        if self._drawn >= min(self._length or ENOUGH_DRAWN, ENOUGH_DRAWN):
            refuse_too_many(self._own.values(), min(self._drawn, self._length or self._drawn))

    def merge(self) -> None:
        """Join the pictures that the processes could not read; all of them call it."""
        if self.dataset is not None:
            for part in gather_objects(self.failures):
                self.failures |= part

    def report(self) -> dict[str, int]:
        """Field of the run's result; warns of the total."""
        if self.dataset is None:
            return {}
        if self.failures and is_main_process():
            failures = [self.failures[index] for index in sorted(self.failures)]
            warnings.warn(f"{summary(failures, self._length)}; others took their place in training", stacklevel=2)
        return {"unreadable_pictures": len(self.failures)}


def probe(dataset: PictureSet) -> None:
    """Read a few pictures from all over a set, so that a set of other files is refused before work begins.

    Raises:
        DataError: none or too few of them can be read; one cannot, where the set refuses unreadable pictures.
    """
    reading = Reading(dataset, np.unique(np.linspace(0, len(dataset) - 1, PROBED).astype(int)).tolist())
    for _ in reading:
        pass
    reading.refuse_too_many()


def summary(failures: Iterable[str], looked_at: int | None) -> str:
    """The number of unreadable pictures and the first few, such as ``2 of 60 pictures cannot be read: a.png (...)``.

    Args:
        failures: file name and reason of each.
        looked_at: of how many; None where that is not known.
    """
    failures = list(failures)
    total = f" of {looked_at:,}" if looked_at is not None else ""
    more = f" and {len(failures) - _NAMED:,} more" if len(failures) > _NAMED else ""
    return f"{len(failures):,}{total} pictures cannot be read: {', '.join(failures[:_NAMED])}{more}"


def refuse_too_many(failures: Iterable[str], looked_at: int) -> None:
    """Raise DataError if all that were looked at, or more than ``MOST_COUNT`` and ``MOST_SHARE``, are unreadable."""
    failures = list(failures)
    if failures and (len(failures) == looked_at or len(failures) > max(MOST_COUNT, MOST_SHARE * looked_at)):
        raise DataError(f"{summary(failures, looked_at)}: too many to go on without; repair the files or remove them")


def join_left_out(parts: Iterable[Mapping[int, str]]) -> dict[int, str]:
    """The pictures that several processes left out, in order."""
    joined = {index: failure for part in parts for index, failure in part.items()}
    return dict(sorted(joined.items()))
