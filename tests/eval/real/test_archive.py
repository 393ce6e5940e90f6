"""ADM-style .npz files: read, written, refused when they are damaged, and compared with as published."""

import numpy as np
import pytest
import torch

from wvq.errors import DataError
from wvq.eval.features.pictures import collect_features
from wvq.eval.figures.distances import FeatureStatistics, frechet_distance
from wvq.eval.real.archive import read_archive, write_archive
from wvq.eval.real.cache import archive_features
from wvq.eval.real.references import against_archive, check_archive


@pytest.fixture
def inception_like(projection_with_logits):
    """A fast network that goes by Inception's name."""
    projection_with_logits.name = "inception"
    return projection_with_logits


@pytest.fixture
def sides(pictures, inception_like):
    images = pictures(30), pictures(40, seed=1)
    return [collect_features(side.split(8), inception_like, len(side), "none") for side in images]


def save(file, network=None, real=None, pictures=None, **arrays):
    if real is not None:
        statistics = FeatureStatistics.of(real.features)
        arrays |= {"mu": statistics.mean.numpy(), "sigma": statistics.covariance.numpy()}
    if pictures is not None:
        arrays["arr_0"] = pictures.permute(0, 2, 3, 1).numpy()
    np.savez(file, **arrays)
    return file


def test_pictures_and_classes_survive_the_round_trip(pictures, tmp_path):
    images = pictures(5)
    write_archive(tmp_path / "deep" / "samples.npz", images.split(2), 5, [3, 1, 2, 0, 1])
    found = read_archive(tmp_path / "deep" / "samples.npz")
    assert found.pictures.shape == (5, 3, 16, 16)
    assert torch.equal(found.pictures[:], images)
    assert torch.equal(found.pictures[3:9], images[3:])
    assert torch.equal(found.pictures[1:2], images[1:2])
    assert (found.moments, found.spatial) == (None, None)
    with np.load(tmp_path / "deep" / "samples.npz") as stored:
        assert stored["arr_0"].shape == (5, 16, 16, 3)
        assert stored["arr_1"].tolist() == [3, 1, 2, 0, 1]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["samples.npz"]
    description = found.description()
    assert description["num_images"] == 5
    assert len(description["sha256"]) == 64


def test_fid_is_the_distance_to_the_stored_statistics(sides, inception_like, tmp_path):
    samples, real = sides
    archive = read_archive(save(tmp_path / "r.npz", real=real))
    pool = archive_features(archive, inception_like, "train", progress=False)
    metrics, floor, counts = against_archive(inception_like, samples, archive, pool)
    assert metrics["fid"] == pytest.approx(frechet_distance(samples.features, real.features), rel=1e-6)
    assert "kid" not in metrics
    assert metrics["inception_score"] >= 1
    assert (floor, counts) == ({}, {"num_images": 30, "num_reference": 0, "num_floor": 0})


def test_pictures_beside_the_statistics_give_the_rest_and_the_floor(sides, pictures, inception_like, tmp_path):
    samples, real = sides
    archive = read_archive(save(tmp_path / "r.npz", real=real, pictures=pictures(20, seed=1)))
    pool = archive_features(archive, inception_like, "train", progress=False)
    metrics, floor, counts = against_archive(inception_like, samples, archive, pool)
    assert metrics["fid"] == pytest.approx(frechet_distance(samples.features, real.features), rel=1e-6)
    assert {"kid", "precision", "recall", "density", "coverage"} <= set(metrics)
    assert counts == {"num_images": 30, "num_reference": 20, "num_floor": 20}
    moments = FeatureStatistics.of(real.features)
    assert floor["fid"] == pytest.approx(frechet_distance(FeatureStatistics.of(pool.features), moments), rel=1e-6)
    first = FeatureStatistics.of(samples.features[:20])
    assert metrics["fid_at_floor_n"] == pytest.approx(frechet_distance(first, moments), rel=1e-6)


def test_under_another_network_only_the_pictures_count(sides, pictures, projection, tmp_path):
    samples, real = sides
    archive = read_archive(save(tmp_path / "r.npz", real=real, pictures=pictures(20, seed=1)))
    projection.name = "projection"
    pool = archive_features(archive, projection, "train", progress=False)
    metrics, _, _ = against_archive(projection, samples, archive, pool)
    assert "fid" not in metrics
    assert "fd_projection" in metrics
    bare = read_archive(save(tmp_path / "bare.npz", real=real))
    with pytest.raises(DataError, match="statistics of Inception features and no pictures"):
        check_archive(bare, projection)
    check_archive(archive, projection)


def test_statistics_of_other_dims_are_refused_before_anything_is_drawn(sides, pictures, inception_like, tmp_path):
    check_archive(read_archive(save(tmp_path / "r.npz", real=sides[1])), inception_like)
    other = read_archive(save(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3)))
    with pytest.raises(DataError, match=r"mu of .*other\.npz has 3 dims, Inception's features have 12"):
        check_archive(other, inception_like)
    few = read_archive(save(tmp_path / "few.npz", pictures=pictures(3)))
    with pytest.raises(DataError, match="holds 3 pictures; at least 4"):
        check_archive(few, inception_like)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "neither mu and sigma nor pictures"),
        ({"mu": np.zeros(3)}, "only one of mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 2))}, r"must be \(D,\) and \(D, D\)"),
        ({"mu": np.zeros(3, int), "sigma": np.zeros((3, 3), int)}, "numbers"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "NaN or infinity"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"must be uint8 \(N, H, W, 3\), not float64"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8)}, r"must be uint8 \(N, H, W, 3\)"),
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "no .npz file that can be read"),
    ],
)
def test_other_contents_are_one_line_that_names_the_file(arrays, message, tmp_path):
    file = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        read_archive(file)
    assert "bad.npz" in str(error.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        read_archive(tmp_path / "none.npz")
    whole = save(tmp_path / "whole.npz", mu=np.zeros(50), sigma=np.zeros((50, 50))).read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:1000] + b"x" * 500 + whole[1500:]):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.npz"):
            read_archive(tmp_path / "cut.npz")
