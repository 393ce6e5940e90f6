"""Features of a data set's pictures: content hash, order, subsets, the evaluation crop, unreadable pictures, caches."""

import hashlib

import pytest
import torch

from tests import stand_ins
from tests.processes import run_ranks
from wvq.errors import DataError
from wvq.eval.real import dataset as dataset_module
from wvq.eval.real.dataset import dataset_features


def hash_of_hashes(images):
    return hashlib.sha256(b"".join(hashlib.sha256(image.numpy().tobytes()).digest() for image in images)).hexdigest()


def features(data, network, **options):
    return dataset_features(data, network, "train", **({"batch_size": 3, "progress": False} | options))


def test_features_carry_the_identity_of_their_pictures(projection, pictures, picture_set):
    images = pictures(10)
    real = features(picture_set(images), projection)
    assert real.description() == {
        "sha256": hash_of_hashes(images),
        "num_images": 10,
        "image_size": 16,
        "crop": "center",
    }
    torch.testing.assert_close(real.features, projection(images).features)
    assert real.logits is None


def test_hash_depends_on_pixels_but_not_on_the_batch_size(projection, pictures, picture_set):
    images = pictures(6)
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    one, other, different = (
        features(picture_set(data), projection, batch_size=size).sha256
        for data, size in ((images, 2), (images, 5), (changed, 2))
    )
    assert one == other != different


def test_training_views_are_evaluated_under_the_centre_crop(projection, pictures, picture_set):
    images = pictures(4)
    real = features(picture_set(images, crop_recipe="random(0.8)+flip"), projection)
    assert real.crop_recipe == "center"
    torch.testing.assert_close(real.features, projection(images).features)


def test_logits_are_kept_and_progress_is_shown(projection_with_logits, pictures, picture_set, capsys):
    real = features(picture_set(pictures(5)), projection_with_logits, progress=True)
    assert real.logits.shape == (5, 5)
    shown = capsys.readouterr().err
    assert "real pictures" in shown
    assert "real features" in shown


def test_unreadable_pictures_are_left_out_and_others_taken(counting, pictures, picture_set, tmp_path):
    images = pictures(10)
    options = {"indices": [5, 4, 2, 9, 0, 1], "limit": 3, "cache": tmp_path}
    for _ in range(2):
        real = features(picture_set(images, broken=(2, 5)), counting, **options)
        assert (real.indices, real.num_images, real.num_unreadable) == ([4, 9, 0], 3, 2)
        assert real.sha256 == hash_of_hashes(images[[4, 9, 0]])
        torch.testing.assert_close(real.features, counting.network(images[[4, 9, 0]]).features)
        assert real.warnings == [
            "2 of 5 pictures cannot be read: 5.png (broken), 2.png (broken); left out of evaluation"
        ]
    assert counting.seen == 3


def test_too_many_unreadable_pictures_are_an_error(projection, pictures, picture_set):
    with pytest.raises(DataError, match=r"11 of 40 pictures cannot be read: .*too many"):
        features(picture_set(pictures(40), broken=range(11)), projection)


def test_an_empty_set_is_an_error(projection, pictures, picture_set):
    with pytest.raises(DataError, match="no pictures"):
        features(picture_set(pictures(4)), projection, indices=[])


def test_the_second_time_the_network_does_not_run(counting, pictures, picture_set, tmp_path):
    images = pictures(10)
    for _ in range(2):
        real = features(picture_set(images), counting, cache=tmp_path)
        torch.testing.assert_close(real.features, counting.network(images).features)
        assert real.sha256 == hash_of_hashes(images)
        assert real.indices == list(range(10))
    assert counting.seen == 10


def test_other_pixels_orders_and_networks_are_other_features(counting, pictures, picture_set, tmp_path):
    images = pictures(6)
    features(picture_set(images), counting, cache=tmp_path)
    features(picture_set(images), counting, cache=tmp_path, indices=[5, 4, 3, 2, 1, 0])
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    features(picture_set(changed), counting, cache=tmp_path)
    assert counting.seen == 18
    counting.network.weights_sha256 = "1" * 64
    features(picture_set(images), counting, cache=tmp_path)
    assert counting.seen == 24
    dataset_features(picture_set(images), counting, "validation", cache=tmp_path, progress=False)
    assert counting.seen == 30  # a kind of its own, so that its header never says the wrong one


def test_processes_share_the_reading(pictures, picture_set, monkeypatch):
    """Each process hashes its part of every chunk; joined, they are what one process reads."""
    data = picture_set(pictures(10), broken=(3,))
    expected = dataset_module._identify(data, list(range(10)), 8, 4, False)
    parts = []
    for rank in (0, 1):
        state = type("State", (), {"process_index": rank, "num_processes": 2})
        monkeypatch.setattr(dataset_module, "processes", state)
        monkeypatch.setattr(dataset_module, "gather_objects", lambda part: parts.append(part) or [part])
        dataset_module._identify(data, list(range(8)), 8, 4, False)
    joined = {index: digest for digests, _ in parts for index, digest in digests.items()}
    assert joined == {index: expected[0][index] for index in range(8) if index != 3}
    assert expected[0].keys() == {0, 1, 2, 4, 5, 6, 7, 8}


def test_of_two_processes_both_learn_that_the_first_cannot_hold_the_folder(tmp_path):
    script = """
import runpy
import sys
from wvq.distributed import leave_processes, processes
from wvq.errors import ConfigError
from wvq.eval.real.dataset import dataset_features
from wvq.files import locks
processes()
def locked(*_):
    raise OSError(30, "Read-only file system")
locks._locked = locked
made = runpy.run_path(sys.argv[2])
data, network = made["PictureSet"](made["draw_pictures"](4)), made["ProjectionNetwork"]()
try:
    dataset_features(data, network, "train", cache=sys.argv[1], progress=False, num_workers=0)
except ConfigError:
    leave_processes()
    sys.exit(2)
"""
    for done in run_ranks(["-c", script, tmp_path, stand_ins.__file__]):
        assert done.returncode == 2, done.stderr
