"""References of samples: data sets and archives, their kinds, pools, floors, statistics and refusals."""

import numpy as np
import pytest
import torch

from tests.stand_ins import features_of
from wvq.errors import ConfigError, DataError
from wvq.eval.figures.distances import frechet_distance, moments
from wvq.eval.real.archive import ReferenceArchive, read_archive
from wvq.eval.real.references import ArchiveReference, DatasetReference, as_reference


@pytest.fixture
def sides(pictures, inception_like):
    return [features_of(images, inception_like) for images in (pictures(30), pictures(40, seed=1))]


@pytest.fixture
def archived(tmp_path):
    """Writes statistics of features and pictures, and gives the reference that they make."""

    def make(real=None, pictures=None, **arrays):
        if real is not None:
            mean, covariance = moments(real.features)
            arrays |= {"mu": mean.numpy(), "sigma": covariance.numpy()}
        if pictures is not None:
            arrays["arr_0"] = pictures.permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / "r.npz", **arrays)
        return ArchiveReference(read_archive(tmp_path / "r.npz"))

    return make


def compare(reference, network, samples):
    pool = reference.pool(network, samples.num_images, progress=False)
    return reference.compare(network, samples, pool), pool


def test_fid_is_the_distance_to_the_stored_statistics(sides, inception_like, archived):
    samples, real = sides
    comparison, _ = compare(archived(real), inception_like, samples)
    assert comparison.metrics["fid"] == pytest.approx(frechet_distance(samples.features, real.features), rel=1e-6)
    assert "kid" not in comparison.metrics
    assert comparison.metrics["inception_score"] >= 1
    assert comparison.floor == {}
    assert comparison.counts == {"num_images": 30, "num_reference": 0, "num_floor": 0}


def test_pictures_beside_the_statistics_give_the_rest_and_the_floor(sides, pictures, inception_like, archived):
    samples, real = sides
    comparison, pool = compare(archived(real, pictures(20, seed=1)), inception_like, samples)
    metrics, floor = comparison.metrics, comparison.floor
    assert metrics["fid"] == pytest.approx(frechet_distance(samples.features, real.features), rel=1e-6)
    assert {"kid", "precision", "recall", "density", "coverage"} <= set(metrics)
    assert comparison.counts == {"num_images": 30, "num_reference": 20, "num_floor": 20}
    stored = moments(real.features)
    assert floor["fid"] == pytest.approx(frechet_distance(moments(pool.features), stored), rel=1e-6)
    first = moments(samples.features[:20])
    assert metrics["fid_at_floor_n"] == pytest.approx(frechet_distance(first, stored), rel=1e-6)


def test_under_another_network_only_the_pictures_count(sides, pictures, projection, archived):
    samples, real = sides
    reference = archived(real, pictures(20, seed=1))
    reference.check(projection)
    comparison, _ = compare(reference, projection, samples)
    assert "fid" not in comparison.metrics
    assert "fd_projection" in comparison.metrics
    with pytest.raises(DataError, match="statistics of Inception features and no pictures"):
        archived(real).check(projection)


def test_statistics_of_other_dims_are_refused_before_anything_is_drawn(sides, pictures, inception_like, archived):
    archived(sides[1]).check(inception_like)
    with pytest.raises(DataError, match=r"mu of .*r\.npz has 3 dims, Inception's features have 12"):
        archived(mu=np.zeros(3), sigma=np.eye(3)).check(inception_like)
    with pytest.raises(DataError, match="holds 3 pictures; at least 4"):
        archived(pictures=pictures(3)).check(inception_like)


def test_an_archives_pictures_are_cached_and_taken_in_a_random_order(counting, pictures, tmp_path):
    images = pictures(9)
    archive = ReferenceArchive(tmp_path / "a.npz", "ab", None, None, images)
    for _ in range(2):
        pool = ArchiveReference(archive, cache=tmp_path / "cache").pool(counting, 9, 4, progress=False)
    assert counting.seen == 9
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool.features, counting.network(images).features[order])
    assert pool.indices == []  # none of them is a picture of a data set
    empty = ReferenceArchive(tmp_path / "a.npz", "ab", None, None, None)
    assert ArchiveReference(empty).pool(counting, 9).num_images == 0


def test_other_kinds_are_refused_or_marked(pictures, picture_set):
    data = picture_set(pictures(6))
    with pytest.raises(ConfigError, match=r"takes a train reference, and this one is validation: .*--force-reference"):
        DatasetReference(data, "validation")
    with pytest.raises(ConfigError, match="reference_kind must be train or validation, not 'test'"):
        DatasetReference(data, "test")
    assert DatasetReference(data, "validation", force=True).kind == "validation"


def test_what_is_given_becomes_a_reference(pictures, picture_set, tmp_path):
    data = picture_set(pictures(6))
    reference = as_reference(data)
    assert (reference.dataset, reference.kind) == (data, "train")
    assert as_reference(reference) is reference
    assert isinstance(as_reference(ReferenceArchive(tmp_path / "a.npz", "", None, None, None)), ArchiveReference)


def test_features_of_a_reference_are_taken_once_for_a_network_and_a_number(counting, pictures, picture_set):
    reference = DatasetReference(picture_set(pictures(12)))
    pool = reference.pool(counting, 5, progress=False)
    assert reference.pool(counting, 5) is pool
    assert counting.seen == pool.num_images == 10  # the samples' number, and as many for the floor
    assert pool.indices == reference.order()[:10]
    assert reference.pool(counting, 6, progress=False).num_images == 12
