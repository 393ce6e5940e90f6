"""Where features of real pictures are kept, and for how long where there is no cache."""

import pytest
import torch

from wvq.eval.features.pictures import PictureIdentity
from wvq.eval.features.shards import Batch
from wvq.eval.real.cache import kept_features, usable_cache


def test_without_a_cache_nothing_stays(counting, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = pictures(9)
    described = PictureIdentity(sha256="ab", num_images=9, image_size=16, crop="none")
    for _ in range(2):
        kept = kept_features(
            lambda run: Batch(images[run.start : run.stop], list(run)), described, counting, "train", progress=False
        )
        torch.testing.assert_close(kept.features, counting.network(images).features)
    assert counting.seen == 18
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    monkeypatch.delenv("WVQ_CACHE", raising=False)
    monkeypatch.setattr("wvq.files.user_folders._user_cache", lambda: None)
    with pytest.warns(UserWarning, match=r"a cache cannot be written \(this user has no home folder\).*set WVQ_CACHE"):
        assert usable_cache() is None


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("WVQ_CACHE", str(tmp_path / "mine"))
    assert usable_cache() == tmp_path / "mine" / "references"
