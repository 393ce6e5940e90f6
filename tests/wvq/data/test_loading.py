"""Reading ahead in loader processes: order, pictures left out, batches of one size."""

import os

import pytest
import torch
from torch.utils.data import Dataset

from tests.stand_ins import PictureSet, draw_pictures
from wvq.data.loading import read_all, read_chunks, regrouped
from wvq.data.unreadable import Reading
from wvq.errors import ConfigError, UnreadablePictureError
from wvq.hardware import MOST_LOADERS, loader_processes


class ReaderNumbers(Dataset):
    """Items that say which process has read them."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"pixel_values": torch.tensor([index]), "process": os.getpid()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_chunks_come_in_order_from_loader_processes(num_workers):
    chunks = [[3, 1], [7], range(9, 12)]
    found = [batch for batch, _ in read_chunks(ReaderNumbers(), chunks, num_workers=num_workers)]
    assert [batch["pixel_values"].flatten().tolist() for batch in found] == [[3, 1], [7], [9, 10, 11]]
    readers = {number for batch in found for number in batch["process"].tolist()}
    assert (os.getpid() in readers) == (num_workers == 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_in_batches_is_the_pass_item_by_item(num_workers):
    dataset = PictureSet(draw_pictures(30), broken=(0, 4, 5, 17, 29))
    order = list(range(29, -1, -1))
    for limit in (None, 11, 25):
        one, other = Reading(dataset, order, limit), Reading(dataset, order, limit, num_workers)
        expected, batches = list(one), list(other.batches(4))
        assert (one.used, one.left_out) == (other.used, other.left_out)
        assert [len(batch["index"]) for batch in batches[:-1]] == [4] * (len(batches) - 1)
        assert torch.cat([batch["index"] for batch in batches]).tolist() == one.used
        pixels = torch.cat([batch["pixel_values"] for batch in batches])
        assert torch.equal(pixels, torch.stack([item["pixel_values"] for item in expected]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_picture_behind_the_last_one_wanted_refuses_nothing(num_workers):
    dataset = PictureSet(draw_pictures(8), broken=(5,))
    dataset.unreadable = "refuse"
    reading = Reading(dataset, limit=4, num_workers=num_workers)
    assert [batch["index"].tolist() for batch in reading.batches(8)] == [[0, 1, 2, 3]]
    with pytest.raises(UnreadablePictureError, match="5"):
        list(Reading(dataset, limit=6, num_workers=num_workers).batches(8))


def test_a_chunk_without_readable_pictures_is_empty():
    dataset = PictureSet(draw_pictures(6), broken=(2, 3))
    (_, one), (batch, two), _ = read_chunks(dataset, [[0, 1], [2, 3], [4, 5]])
    assert one == [(0, None), (1, None)]
    assert (batch, two) == ({}, [(2, "2.png (broken)"), (3, "3.png (broken)")])


def test_a_picture_that_could_be_read_before_is_named():
    with pytest.raises(UnreadablePictureError, match=r"3.png \(broken\) cannot be read any more"):
        list(read_all(PictureSet(draw_pictures(6), broken=(3,)), [[0, 1], [3]]))


@pytest.mark.parametrize("sizes", [[4, 4, 4], [1, 9, 2], [12], [3, 3, 3, 2], [1], []])
def test_regrouped_rows_keep_their_order(sizes):
    rows = torch.arange(sum(sizes))
    batches = list(regrouped(({"a": part, "b": part + 1} for part in rows.split(sizes)), 4))
    assert all(len(batch["a"]) == 4 for batch in batches[:-1])
    assert torch.cat([batch["a"] for batch in batches] or [rows]).tolist() == rows.tolist()
    assert all(torch.equal(batch["a"] + 1, batch["b"]) for batch in batches)


def test_how_many_loader_processes_there_are(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(48), raising=False)
    assert (loader_processes("cpu"), loader_processes("cpu", 3), loader_processes("cuda", 0)) == (0, 3, 0)
    assert loader_processes("cuda") == MOST_LOADERS
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loader_processes("cuda") == 6
    with pytest.raises(ConfigError, match="num_workers must be an integer of at least 0, or null, got -1"):
        loader_processes("cpu", -1)
