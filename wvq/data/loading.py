"""Pictures read ahead by loader processes, in order, without those that cannot be read."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from wvq.data.pictures import PictureStore
from wvq.errors import UnreadablePictureError, WVQError, from_worker
from wvq.hardware import loader_processes
from wvq.interruption import end_with_parent_only


class PictureSet(Protocol):
    """Pictures by number: items are dicts of tensors and numbers, ``pixel_values`` among them."""

    def __len__(self) -> int:
        """The number of pictures."""
        ...

    def __getitem__(self, key: int, /) -> dict[str, Any]:
        """The item of a picture."""
        ...


@runtime_checkable
class FileSet(PictureSet, Protocol):
    """Pictures that are decoded from files, some of which may be unreadable.

    Attributes:
        unreadable: what happens then, ``skip`` or ``refuse``.
        store: decodes the files, and knows why one could not be read.
    """

    unreadable: str
    store: PictureStore


class Attempts(Dataset[tuple[dict[str, Any] | None, str | None]]):
    """Each picture of a set as (item, None), or (None, file name and reason) where it cannot be read.

    Raises:
        UnreadablePictureError: on access, where the data set refuses unreadable pictures.
    """

    def __init__(self, dataset: PictureSet):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[dict[str, Any] | None, str | None]:
        try:
            return self.dataset[index], None
        except UnreadablePictureError:
            if isinstance(self.dataset, FileSet) and self.dataset.unreadable == "skip":
                return None, self.dataset.store.failure(index)
            raise


def read_chunks(
    dataset: PictureSet,
    chunks: Sequence[list[int]],
    device: str | torch.device = "cpu",
    num_workers: int | None = None,
) -> Generator[tuple[dict[str, torch.Tensor], dict[int, str]], None, None]:
    """Read chunks of pictures in loader processes, in the order given.

    Args:
        dataset: the pictures.
        chunks: the pictures of each; a loader process reads a whole one.
        device: where ``pixel_values`` go, through pinned memory where that is a GPU; all else stays on the CPU.
        num_workers: loader processes; :func:`wvq.hardware.loader_processes` decides if None.

    Yields:
        The items of a chunk, stacked (nothing if none could be read), and the file name and reason of each picture
        left out, by index.

    Raises:
        UnreadablePictureError: one cannot be read, and the data set refuses that.
    """
    device = torch.device(device)
    loader = DataLoader(
        Attempts(dataset),
        batch_sampler=chunks,
        collate_fn=_stacked,
        num_workers=min(loader_processes(device.type, num_workers), len(chunks)),
        pin_memory=device.type == "cuda",
        worker_init_fn=end_with_parent_only,
    )
    try:
        for chunk, (batch, failures) in zip(chunks, loader, strict=True):
            if batch:
                batch["pixel_values"] = batch["pixel_values"].to(device, non_blocking=True)
            yield batch, {index: why for index, why in zip(chunk, failures, strict=True) if why is not None}
    except WVQError as error:
        raise (from_worker(error) if loader.num_workers else error) from None


def read_all(
    dataset: PictureSet,
    chunks: Sequence[list[int]],
    device: str | torch.device = "cpu",
    num_workers: int | None = None,
) -> Iterator[torch.Tensor]:
    """Pixels (B, 3, H, W) of chunks of pictures that have been read before, as :func:`read_chunks` reads them.

    Raises:
        UnreadablePictureError: one cannot be read any more.
    """
    for batch, left_out in read_chunks(dataset, chunks, device, num_workers):
        if left_out:
            raise UnreadablePictureError(f"{next(iter(left_out.values()))} cannot be read any more; start again")
        yield batch["pixel_values"]


def _stacked(
    attempts: list[tuple[dict[str, Any] | None, str | None]],
) -> tuple[dict[str, torch.Tensor], list[str | None]]:
    items = [item for item, _ in attempts if item is not None]
    return default_collate(items) if items else {}, [failure for _, failure in attempts]


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
