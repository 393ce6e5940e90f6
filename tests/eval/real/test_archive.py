"""ADM-style .npz files: read, written, and refused when they are damaged."""

import numpy as np
import pytest
import torch

from wvq.errors import DataError
from wvq.eval.real.archive import read_archive, write_archive


def save(file, **arrays):
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
