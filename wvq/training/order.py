"""The order in which a run sees its pictures: a function of the seed and of the number of pictures seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class RunSampler(Sampler[tuple[int, int]]):
    """Endless (position, index) pairs of one process: its share of each global batch, from ``start`` pictures on.

    ``position`` counts the pictures of the whole run; each pass over the data has its own permutation.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        share = self.batch_size // self.world
        epoch, order = -1, np.empty(0, np.int64)
        for first in range(self.start, 2**62, self.batch_size):
            for position in range(first + self.rank * share, first + (self.rank + 1) * share):
                if position // self.length != epoch:
                    epoch = position // self.length
                    generator = torch.Generator().manual_seed(self.seed * 2**31 + epoch)
                    order = torch.randperm(self.length, generator=generator).numpy()
                    if self.length < 2**31:  # half the memory: 200 MB for 50 million pictures
                        order = order.astype(np.int32)
                yield position, int(order[position % self.length])
