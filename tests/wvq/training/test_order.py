"""The order in which a run sees its pictures."""

import tracemalloc

import pytest
import torch

from wvq.training.order import RunSampler


def take(sampler, count):
    return [pair for pair, _ in zip(sampler, range(count), strict=False)]


def test_each_epoch_is_a_permutation_of_its_own():
    pairs = take(RunSampler(10, 4, seed=3), 30)
    assert [position for position, _ in pairs] == list(range(30))
    epochs = [[index for _, index in pairs[i : i + 10]] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert pairs != take(RunSampler(10, 4, seed=4), 30)


@pytest.mark.parametrize("length", [3, 10, 12])
def test_the_shares_of_two_processes_join_to_the_batch_of_one(length):
    one = take(RunSampler(length, 4, seed=0), 40)
    first, second = (take(RunSampler(length, 4, 0, rank, 2), 20) for rank in (0, 1))
    joined = [pair for i in range(0, 20, 2) for pair in first[i : i + 2] + second[i : i + 2]]
    assert joined == one


def test_a_permutation_is_kept_as_four_bytes_a_picture():
    """Not as Python's numbers, which take 40 bytes each; and in torch's order."""
    length = 1_000_000
    tracemalloc.start()
    pairs = take(RunSampler(length, 4, seed=2), 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * length
    order = torch.randperm(length, generator=torch.Generator().manual_seed(2 * 2**31))
    assert pairs == list(enumerate(order[:8].tolist()))
    assert all(type(index) is int for _, index in pairs)


@pytest.mark.parametrize("start", [4, 8, 20])
def test_a_sampler_continues_in_the_middle(start):
    assert take(RunSampler(6, 4, seed=1, start=start), 20) == take(RunSampler(6, 4, seed=1), start + 20)[start:]
