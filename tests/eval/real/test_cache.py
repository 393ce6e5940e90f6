"""Features of real pictures are computed once for the same pixels and network, and never taken for others'."""

import sys

import pytest
import torch

from tests import stand_ins
from tests.processes import run_ranks
from wvq.errors import DataError
from wvq.eval.features.pictures import reference_features
from wvq.eval.real import cache as reference_cache
from wvq.eval.real.archive import ReferenceArchive
from wvq.eval.real.cache import archive_features, cached_reference_features, usable_cache


class Counting(torch.nn.Module):
    """A feature network that counts the pictures it has seen."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, images):
        self.seen += len(images)
        return self.network(images)


@pytest.fixture
def counting(projection):
    return Counting(projection)


def cached(data, network, folder, **options):
    return cached_reference_features(data, network, folder, "train", batch_size=3, progress=False, **options)


def test_the_second_time_the_network_does_not_run(counting, pictures, picture_set, tmp_path):
    data = picture_set(pictures(10))
    first = cached(data, counting, tmp_path)
    second = cached(data, counting, tmp_path)
    assert counting.seen == 10
    expected = reference_features(data, counting.network, progress=None)
    for found in (first, second):
        torch.testing.assert_close(found.features, expected.features)
        assert found.description() == expected.description()
        assert found.indices == list(range(10))


def test_other_pixels_orders_and_networks_are_other_features(counting, pictures, picture_set, tmp_path):
    images = pictures(6)
    cached(picture_set(images), counting, tmp_path)
    cached(picture_set(images), counting, tmp_path, indices=[5, 4, 3, 2, 1, 0])
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    cached(picture_set(changed), counting, tmp_path)
    assert counting.seen == 18
    counting.network.weights_sha256 = "1" * 64
    cached(picture_set(images), counting, tmp_path)
    assert counting.seen == 24
    cached_reference_features(picture_set(images), counting, tmp_path, "validation", progress=False)
    assert counting.seen == 30  # a kind of its own, so that its header never says the wrong one


def test_unreadable_pictures_are_left_out_and_others_taken(counting, pictures, picture_set, tmp_path):
    data = picture_set(pictures(10), broken=(2, 5))
    order = [5, 4, 2, 9, 0, 1]
    found = cached(data, counting, tmp_path, indices=order, limit=3)
    expected = reference_features(data, counting.network, indices=order, limit=3, progress=None)
    assert found.indices == expected.indices == [4, 9, 0]
    assert found.num_unreadable == 2
    assert found.sha256 == expected.sha256
    assert found.warnings == expected.warnings
    with pytest.raises(DataError, match="too many"):
        cached(picture_set(pictures(20), broken=range(15)), counting, tmp_path)


def test_processes_share_the_reading(projection, pictures, picture_set, tmp_path, monkeypatch):
    """Each process hashes its part of every chunk; joined, they are what one process finds."""
    data = picture_set(pictures(10), broken=(3,))
    expected = reference_cache._identify(data, list(range(10)), 8, 4, False)
    parts = []
    for rank in (0, 1):
        state = type("State", (), {"process_index": rank, "num_processes": 2, "is_main_process": rank == 0})
        monkeypatch.setattr(reference_cache, "processes", state)
        monkeypatch.setattr(reference_cache, "gather_objects", lambda part: parts.append(part) or [part])
        reference_cache._identify(data, list(range(8)), 8, 4, False)
    joined = {index: digest for found, _ in parts for index, digest in found.items()}
    assert joined == {index: expected[0][index] for index in range(8) if index != 3}
    assert expected[0].keys() == {0, 1, 2, 4, 5, 6, 7, 8}


def test_of_two_processes_both_learn_that_the_first_cannot_hold_the_folder(tmp_path):
    script = """
import runpy
import sys
from pathlib import Path
from wvq.files import locks
from wvq.distributed import leave_processes, processes
from wvq.errors import ConfigError
from wvq.eval.real import cache as reference_cache
processes()
def locked(*_):
    raise OSError(30, "Read-only file system")
locks._locked = locked
made = runpy.run_path(sys.argv[2])
data, network = made["PictureSet"](made["draw_pictures"](4)), made["ProjectionNetwork"]()
try:
    reference_cache.cached_reference_features(data, network, Path(sys.argv[1]), "train", progress=False, num_workers=0)
except ConfigError:
    leave_processes()
    sys.exit(2)
"""
    for code, error in run_ranks([sys.executable, "-c", script, str(tmp_path), stand_ins.__file__]):
        assert code == 2, error


def test_an_archives_pictures_are_cached_too(counting, pictures, tmp_path):
    images = pictures(9)
    archive = ReferenceArchive(tmp_path / "a.npz", "ab", None, None, images)
    for _ in range(2):
        found = archive_features(archive, counting, "train", 4, tmp_path / "cache", progress=False)
    assert counting.seen == 9
    torch.testing.assert_close(found.features, counting.network(images).features)
    assert archive_features(archive, counting, "train", 4, None, progress=False).num_images == 9
    empty = ReferenceArchive(tmp_path / "a.npz", "ab", None, None, None)
    assert archive_features(empty, counting, "train").num_images == 0


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    monkeypatch.delenv("WVQ_CACHE", raising=False)
    monkeypatch.setattr("wvq.files.user_folders._user_cache", lambda: None)
    with pytest.warns(UserWarning, match=r"a cache cannot be written \(this user has no home folder\).*set WVQ_CACHE"):
        assert usable_cache() is None


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("WVQ_CACHE", str(tmp_path / "mine"))
    assert usable_cache() == tmp_path / "mine" / "references"
