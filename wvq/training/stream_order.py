"""The order in which a run sees a stream: shards permuted for each pass, and blocks of what each process reads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import islice, takewhile
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from wvq.data.stream import DrawnBatch, StreamedImages, StreamedPicture
from wvq.distributed import gather_objects
from wvq.errors import CheckpointError, ConfigError, DataError

MOST_BLOCKS = 2**16  # remembered: far more than loaders run ahead of a run
SPARES = 4  # pictures that come with a batch, in case that none of it can be read


@dataclass(frozen=True)
class Block:
    """Where a block of a process's stream begins.

    Attributes:
        number: how many were before it.
        drawn: how many pictures they had.
        epoch: its pass over the data.
        place: its shard, among those of the process in this pass.
        row: its first row there.
    """

    number: int = 0
    drawn: int = 0
    epoch: int = 0
    place: int = 0
    row: int = 0


class StreamOrder(Sampler[DrawnBatch]):
    """Endless batches of one process from a stream, in an order that can be gone on with anywhere.

    Each pass permutes the shards by the seed and its number, and the processes take every ``world``-th. What a process
    reads is cut into blocks of ``settings.shuffle_buffer`` pictures, the last of a pass being smaller, and each is
    permuted by the seed, the process and the block's number. So the order is a function of the seed, the number of
    processes and that of the pictures drawn; each pass of a process shows its pictures once. While a block is drawn
    from, the next one is read in a thread: two are held at a time.

    Args:
        images: the training set.
        batch_size: of all processes.
        micro_batch: pictures of a batch that is given.
        seed: of the order.
        rank: of this process.
        world: the number of processes.

    Attributes:
        start: pictures that the run has seen where it goes on.

    Raises:
        ConfigError: fewer shards than processes.
    """

    def __init__(self, images: StreamedImages, batch_size: int, micro_batch: int, seed: int, rank: int, world: int):
        if images.num_shards < world:
            raise ConfigError(
                f"data.stream: {world} processes need at least as many training shards, and there are "
                f"{images.num_shards}; start fewer processes, or write smaller shards"
            )
        self.images, self.batch_size, self.micro_batch = images, batch_size, micro_batch
        self.seed, self.rank, self.world, self.start = seed, rank, world, 0
        self._blocks = deque([Block()], MOST_BLOCKS)  # those that a run may have to begin with again

    def shards(self, epoch: int) -> list[int]:
        """The shards that this process reads in a pass, in order."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.images.num_shards)
        return order[self.rank :: self.world].tolist()

    def __iter__(self) -> Iterator[DrawnBatch]:
        share = self.batch_size // self.world
        drawn = self._drawn(self.start // self.world)
        count = self.start // self.world
        while True:
            batch = DrawnBatch([], [])
            for epoch, picture, spares in islice(drawn, self.micro_batch):
                position = count // share * self.batch_size + self.rank * share + count % share
                batch.drawn.append((position, epoch, picture))
                batch.spares = spares
                count += 1
            yield batch

    def state_dict(self, images_seen: int) -> dict[str, Any]:
        """Where a run that has seen so many pictures goes on reading. All processes ask together."""
        return {"blocks": gather_objects(astuple(self._begin(images_seen // self.world)))}

    def load_state_dict(self, state: dict[str, Any], images_seen: int) -> None:
        """Take up the state that :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is that of another number of processes.
        """
        blocks = state["blocks"]
        if len(blocks) != self.world:
            raise CheckpointError(
                f"the checkpoint is of a stream over {len(blocks)} processes, and there are {self.world}; resume with "
                "as many as before"
            )
        self._blocks, self.start = deque([Block(*blocks[self.rank])], MOST_BLOCKS), images_seen

    def _begin(self, drawn: int) -> Block:
        """The block that the next picture after ``drawn`` of this process is in."""
        return [block for block in tuple(self._blocks) if block.drawn <= drawn][-1]  # the reader adds some meanwhile

    def _drawn(self, start: int) -> Iterator[tuple[int, StreamedPicture, list[StreamedPicture]]]:
        """The pictures of this process from its ``start``-th on, each with its pass and some others of its block."""
        stopped = threading.Event()
        blocks = self._read(self._begin(start), stopped)
        with ThreadPoolExecutor(1, "stream") as reader:
            try:
                following = reader.submit(next, blocks)
                while True:
                    block, pictures = following.result()
                    following = reader.submit(next, blocks)
                    order = np.random.default_rng((self.seed, self.rank, block.number)).permutation(len(pictures))
                    for place in range(max(0, start - block.drawn), len(order)):
                        spares = [pictures[order[(place + 1 + i) % len(order)]] for i in range(SPARES)]
                        yield block.epoch, pictures[order[place]], spares
            finally:
                stopped.set()

    def _read(self, block: Block, stopped: threading.Event) -> Iterator[tuple[Block, list[StreamedPicture]]]:
        """Blocks from one on, with their pictures in the order of the stream; each is noted when it is read.

        Raises:
            DataError: a shard is damaged; or a pass finds no picture.
        """
        size, rest = self.images.settings.shuffle_buffer, self._pass(block)
        while True:
            read = list(islice(takewhile(lambda _: not stopped.is_set(), rest), size))
            if stopped.is_set():
                return
            if not read and block.row == block.place == 0:
                raise DataError(f"the shards of process {self.rank} hold no pictures; write them anew in even shards")
            number, drawn = block.number + bool(read), block.drawn + len(read)
            if len(read) == size:
                place, last = read[-1]
                following = Block(number, drawn, block.epoch, place, last.row + 1)
            else:
                following = Block(number, drawn, block.epoch + 1)
                rest = self._pass(following)
            self._blocks.append(following)
            if read:
                yield block, [picture for _, picture in read]
            block = following

    def _pass(self, block: Block) -> Iterator[tuple[int, StreamedPicture]]:
        """The rest of a pass from the begin of a block on, each picture with the place of its shard."""
        row = block.row
        for place, shard in list(enumerate(self.shards(block.epoch)))[block.place :]:
            for picture in self.images.stream.read(shard, row):
                yield place, picture
            row = 0
        self.images.stream.warn_of_missing()
