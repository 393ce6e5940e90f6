"""The order in which a run sees a stream: each pass whole, over any number of processes, to go on with anywhere."""

import copy
from itertools import islice

import pytest

from tests.shards import write_shards
from wvq.data.opening import open_images
from wvq.data.stream import Classes
from wvq.errors import CheckpointError, ConfigError, DataError
from wvq.settings.data import DataConfig
from wvq.training import stream_order
from wvq.training.stream_order import StreamOrder

COUNTS = [5, 3, 9, 4, 2, 7, 6]  # one of them is held out


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The training set, and its pictures by shard."""
    folder = write_shards(tmp_path_factory.mktemp("shards"), COUNTS)
    images = open_images(DataConfig(path=str(folder), stream=True, image_size=16)).train
    return images, [list(images.stream.read(shard)) for shard in range(images.num_shards)]


def make_order(shards, batch_size=4, micro_batch=None, seed=3, rank=0, world=1, buffer=6):
    """An order over pictures that have been read before."""
    images, pictures = copy.deepcopy(shards[0]), shards[1]
    images.settings.shuffle_buffer = buffer
    images.stream.read = lambda shard, row=0: (picture for picture in pictures[shard] if picture.row >= row)
    return StreamOrder(images, batch_size, micro_batch or batch_size // world, seed, rank, world)


def take(order, batches):
    """(position, pass, number) of each picture of some batches."""
    taken = [batch.drawn for batch in islice(iter(order), batches)]
    return [[(position, epoch, int(picture)) for position, epoch, picture in drawn] for drawn in taken]


def flat(batches):
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize("buffer", [1, 6, 1000])
def test_each_pass_shows_every_picture_once(shards, buffer):
    order = make_order(shards, buffer=buffer)
    every = [int(picture) for pictures in shards[1] for picture in pictures]
    rows = flat(take(order, len(every)))  # four passes
    assert [position for position, _, _ in rows] == list(range(4 * len(every)))
    passes = [[number for _, epoch, number in rows if epoch == e] for e in range(4)]
    assert all(sorted(shown) == every for shown in passes)
    assert len({tuple(shown) for shown in passes}) == 4
    assert rows != flat(take(make_order(shards, buffer=buffer, seed=4), len(every)))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_each_pass_and_the_positions(shards, world):
    """No picture twice or missing in a pass, and as many batches for each as it asks for."""
    orders = [make_order(shards, batch_size=6, rank=rank, world=world, buffer=4) for rank in range(world)]
    every = [int(picture) for pictures in shards[1] for picture in pictures]
    rows = [take(order, 40) for order in orders]
    for epoch in range(2):
        assert sorted(number for part in rows for _, e, number in flat(part) if e == epoch) == every
    for step in range(40):
        positions = [position for part in rows for position, _, _ in part[step]]
        assert positions == list(range(6 * step, 6 * step + 6))


def test_a_batch_in_parts_is_the_batch(shards):
    whole, parts = take(make_order(shards, 8), 10), take(make_order(shards, 8, micro_batch=2), 40)
    assert flat(whole) == flat(parts)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("buffer", [1, 4, 6, 1000])
def test_an_order_goes_on_anywhere(shards, monkeypatch, world, buffer):
    states = {}
    monkeypatch.setattr(stream_order, "gather_objects", lambda block: states.setdefault("blocks", []) + [block] * world)
    for rank in range(world):
        whole = take(make_order(shards, rank=rank, world=world, buffer=buffer), 40)
        for step in (0, 1, 2, 7, 13, 30):
            order = make_order(shards, rank=rank, world=world, buffer=buffer)
            batches = iter(order)
            for _ in range(step + 2):  # loaders run ahead of the run
                next(batches)
            state = order.state_dict(4 * step)
            again = make_order(shards, rank=rank, world=world, buffer=buffer)
            again.load_state_dict(state, 4 * step)
            assert take(again, 40 - step) == whole[step:]


def test_what_is_read_again_is_within_a_shard(shards):
    """A run that goes on opens the shard of its block, and none of those before."""
    order = make_order(shards, buffer=4)
    list(islice(iter(order), 6))
    again = make_order(shards, buffer=4)
    again.load_state_dict(order.state_dict(20), 20)
    opened = []
    read = again.images.stream.read
    again.images.stream.read = lambda shard, row=0: opened.append(shard) or read(shard, row)
    next(iter(again))
    assert set(opened).isdisjoint(again.shards(0)[:2])


def test_other_processes_than_before(shards):
    state = make_order(shards).state_dict(0)
    with pytest.raises(CheckpointError, match="of a stream over 1 processes, and there are 2; resume with as many"):
        make_order(shards, world=2).load_state_dict(state, 0)


def test_fewer_shards_than_processes(shards):
    with pytest.raises(ConfigError, match="8 processes need at least as many training shards, and there are 6"):
        make_order(shards, batch_size=8, world=8)


def test_an_error_of_the_reader_arrives(shards):
    order = make_order(shards)
    del order.images.stream.read
    order.images.stream.classes = Classes(("0",), {"0": 0})
    with pytest.raises(DataError, match="the training shards do not have it"):
        take(order, 1)


def test_shares_without_pictures_are_an_error(shards):
    order = make_order(shards)
    order.images.stream.read = lambda shard, row=0: iter(())
    with pytest.raises(DataError, match="the shards of process 0 hold no pictures"):
        take(order, 1)


def test_a_batch_brings_others_of_its_block(shards):
    order = make_order(shards, batch_size=2, buffer=1000)
    batch = next(iter(order))
    assert len(batch.spares) == stream_order.SPARES
    assert not {int(p) for p in batch.spares} & {int(p) for _, _, p in batch.drawn}
