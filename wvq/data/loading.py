"""Pictures read ahead by loader processes, in order, without those that cannot be read."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, SupportsInt, TypeVar, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from wvq.data.pictures import EncodedStore, PictureStore
from wvq.errors import UnreadablePictureError, WVQError, from_worker
from wvq.hardware import loader_processes
from wvq.interruption import end_with_parent_only

Key = TypeVar("Key")


class KeyedPictures(Protocol):
    """Pictures by keys: items are dicts of tensors and numbers, ``pixel_values`` among them."""

    def __getitem__(self, key: Any, /) -> dict[str, Any]:
        """The item of a picture."""
        ...


class PictureSet(KeyedPictures, Protocol):
    """Pictures by number."""

    def __len__(self) -> int:
        """The number of pictures."""
        ...


@runtime_checkable
class FileSet(Protocol):
    """Pictures that are decoded from files, some of which may be unreadable.

    Attributes:
        unreadable: what happens then, ``skip`` or ``refuse``.
        store: decodes the files, and knows why one could not be read.
    """

    unreadable: str
    store: PictureStore | EncodedStore


@runtime_checkable
class Streamed(KeyedPictures, Protocol):
    """Pictures that can only be read in order, each of which is a key by itself: ``int`` gives its number."""

    def share(self, rank: int, world: int) -> Iterator[SupportsInt]:
        """The pictures of one of ``world`` processes, in order."""
        ...

    def at(self, chunks: Iterable[Sequence[int]]) -> Iterator[list[SupportsInt]]:
        """The pictures of some numbers, which ascend within a chunk and from each to the next."""
        ...


def share_of(dataset: PictureSet | Streamed, rank: int = 0, world: int = 1) -> Iterable[SupportsInt]:
    """Keys of the pictures of one of several processes: every ``world``-th, or of a stream those of its shards."""
    return dataset.share(rank, world) if isinstance(dataset, Streamed) else range(rank, len(dataset), world)


Attempted = list[tuple[int, str | None]]  # numbers of pictures, and why one could not be read; None if it could


def chunked(keys: Iterable[Key], size: int) -> Iterable[list[Key]]:
    """Keys in lists of ``size``, the last of which may be shorter; a list of lists, if all keys are at hand."""
    rest = iter(keys)
    chunks = iter(lambda: list(islice(rest, size)), [])
    return list(chunks) if isinstance(keys, Sequence) else chunks


class Attempts(Dataset[tuple[int, dict[str, Any] | None, str | None]]):
    """Each picture of a set as (number, item, None), or (number, None, file name and reason) if it cannot be read.

    Raises:
        UnreadablePictureError: on access, where the data set refuses unreadable pictures.
    """

    def __init__(self, dataset: KeyedPictures):
        self.dataset = dataset

    def __getitem__(self, key: Any) -> tuple[int, dict[str, Any] | None, str | None]:
        try:
            return int(key), self.dataset[key], None
        except UnreadablePictureError:
            if isinstance(self.dataset, FileSet) and self.dataset.unreadable == "skip":
                return int(key), None, self.dataset.store.failure(key)
            raise


def read_chunks(
    dataset: KeyedPictures,
    chunks: Iterable[list[Any]],
    device: str | torch.device = "cpu",
    num_workers: int | None = None,
) -> Generator[tuple[dict[str, torch.Tensor], Attempted], None, None]:
    """Read chunks of pictures in loader processes, in the order given.

    Args:
        dataset: the pictures.
        chunks: the keys of each; a loader process reads a whole one.
        device: where ``pixel_values`` go, through pinned memory where that is a GPU; all else stays on the CPU.
        num_workers: loader processes; :func:`wvq.hardware.loader_processes` decides if None.

    Yields:
        The items of a chunk, stacked (nothing if none could be read), and what came of each of its pictures.

    Raises:
        UnreadablePictureError: one cannot be read, and the data set refuses that.
    """
    device = torch.device(device)
    workers = loader_processes(device.type, num_workers)
    loader = DataLoader(
        Attempts(dataset),
        batch_sampler=chunks,
        collate_fn=_stacked,
        num_workers=min(workers, len(chunks)) if isinstance(chunks, Sequence) else workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=end_with_parent_only,
    )
    try:
        for batch, attempted in loader:
            if batch:
                batch["pixel_values"] = batch["pixel_values"].to(device, non_blocking=True)
            yield batch, attempted
    except WVQError as error:
        raise (from_worker(error) if loader.num_workers else error) from None


def read_all(
    dataset: PictureSet | Streamed,
    chunks: Sequence[list[int]],
    device: str | torch.device = "cpu",
    num_workers: int | None = None,
) -> Iterator[torch.Tensor]:
    """Pixels (B, 3, H, W) of chunks of pictures that have been read before, as :func:`read_chunks` reads them.

    Raises:
        UnreadablePictureError: one cannot be read any more.
    """
    keys = dataset.at(chunks) if isinstance(dataset, Streamed) else chunks
    for batch, attempted in read_chunks(dataset, keys, device, num_workers):
        for _, failure in attempted:
            if failure is not None:
                raise UnreadablePictureError(f"{failure} cannot be read any more; start again")
        yield batch["pixel_values"]


def _stacked(
    attempts: list[tuple[int, dict[str, Any] | None, str | None]],
) -> tuple[dict[str, torch.Tensor], Attempted]:
    items = [item for _, item, _ in attempts if item is not None]
    return default_collate(items) if items else {}, [(number, failure) for number, _, failure in attempts]


def regrouped(parts: Iterable[dict[str, torch.Tensor]], size: int) -> Iterator[dict[str, torch.Tensor]]:
    """The rows of batches of any size in batches of ``size``, the last of which may be smaller."""
    waiting: dict[str, torch.Tensor] = {}
    for part in parts:
        waiting = {name: torch.cat([waiting[name], values]) for name, values in part.items()} if waiting else part
        count = len(next(iter(waiting.values())))
        for start in range(0, count - size + 1, size):
            yield {name: values[start : start + size] for name, values in waiting.items()}
        rest = count % size
        waiting = {name: values[count - rest :] for name, values in waiting.items()} if rest else {}
    if waiting:
        yield waiting
