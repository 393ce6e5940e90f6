"""Made-up .npz files: whatever they declare, one line says what is wrong, and memory stays as it was."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from wvq.errors import DataError
from wvq.eval.real.archive import array_shapes, read_archive, write_archive

READERS = (read_archive, array_shapes)
MOST_MEMORY = 32 * 2**20


def header(shape, descr="|u1", fortran=False):
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": descr, "fortran_order": fortran, "shape": shape})
    return written.getvalue()


def archive(file, members, method=zipfile.ZIP_STORED):
    """A zip file of (name, content) pairs."""
    with zipfile.ZipFile(file, "w", method) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return file


def patched(file, old, new, count=-1):
    file.write_bytes(file.read_bytes().replace(old, new, count))
    return file


def more_than_there_is(file):
    return archive(file, [("arr_0.npy", header((10**12, 64, 64, 3)) + bytes(64 * 64 * 3))])


def more_than_the_file_has(file):
    """The zip's own directory lies as well: sizes of almost 4 GB, stored in a few hundred bytes."""
    content = header((1, 4, 4, 3)) + bytes(48)
    archive(file, [("arr_0.npy", content)])
    return patched(file, len(content).to_bytes(4, "little"), (2**32 - 2).to_bytes(4, "little"))


def bomb(file):
    shape = (400, 256, 256, 3)
    packed = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
    with packed, packed.open("arr_0.npy", "w") as member:
        member.write(header(shape))
        for _ in range(shape[0]):
            member.write(bytes(256 * 256 * 3))
    return file


def unknown_compression(file):
    archive(file, [("arr_0.npy", header((1, 4, 4, 3)) + bytes(48))])
    content = bytearray(file.read_bytes())
    content[8] = 77  # in the local header
    content[content.index(b"PK\x01\x02") + 10] = 77
    file.write_bytes(bytes(content))
    return file


def encrypted(file):
    archive(file, [("arr_0.npy", header((1, 4, 4, 3)) + bytes(48))])
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(bytes(content))
    return file


def twice(file):
    with pytest.warns(UserWarning, match="Duplicate name"):
        return archive(file, [("arr_0.npy", header((1, 4, 4, 3)) + bytes(48))] * 2)


def objects(file):
    np.savez(file, arr_0=np.array([{"a": 1}], dtype=object))
    return file


def negative(file):
    return archive(file, [("arr_0.npy", header((-1, -4, 4, 3)) + bytes(48))])


def nested_header(file):
    text = ("{'descr': " + "[" * 3000 + "]" * 3000 + "}\n").encode()
    return archive(file, [("arr_0.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)])


def later_format(file):
    return archive(file, [("arr_0.npy", header((1, 4, 4, 3)).replace(b"\x01\x00", b"\x09\x00", 1) + bytes(48))])


def truncated(file):
    archive(file, [("arr_0.npy", header((1, 64, 64, 3)) + bytes(64 * 64 * 3))])
    file.write_bytes(file.read_bytes()[:5000])
    return file


MADE_UP = {
    more_than_there_is: "arr_0 declares 12,288,000,000,000,000 bytes where",
    more_than_the_file_has: r"declares 4,294,967,294 bytes in a file of",
    bomb: "would unpack to 78,643,.* bytes from",
    unknown_compression: "packed in another way; write it by numpy.savez",
    encrypted: "encrypted or packed in another way",
    twice: "holds arr_0 twice",
    objects: "pickled objects",
    negative: r"arr_0 has the shape \(-1, -4, 4, 3\)",
    nested_header: "no .npz file that can be read",
    later_format: "unknown format 9.0",
    truncated: "no .npz file that can be read",
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("make", MADE_UP)
def test_a_made_up_file_is_one_line_and_no_memory(make, read, tmp_path):
    file = make(tmp_path / "made-up.npz")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=MADE_UP[make]) as caught:
            read(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "made-up.npz" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert peak < MOST_MEMORY


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_damaged_byte_of_the_pictures_is_noticed(save, tmp_path):
    file = tmp_path / "damaged.npz"
    save(file, arr_0=np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8))
    whole = file.read_bytes()
    for place in range(200, len(whole) - 200, 97):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"damaged\.npz is no \.npz file that can be read"):
            read_archive(file)


@pytest.mark.parametrize("shape", [(2, 0, 4, 3), (2, 4, 0, 3), (1, 5000, 1, 3)])
def test_pictures_have_a_side_that_can_be(shape, tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=r"must hold pictures of 1 to 4,096 px a side"):
        read_archive(tmp_path / "a.npz")


def test_statistics_have_as_many_dims_as_can_be(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(9000), sigma=np.zeros((1, 1)))
    with pytest.raises(DataError, match="D from 1 to 8,192"):
        read_archive(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_either_order_and_packing_gives_the_same_pictures(save, tmp_path):
    pictures = np.random.default_rng(1).integers(0, 256, (7, 6, 5, 3), np.uint8)
    expected = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    for values in (pictures, np.asfortranarray(pictures)):
        save(tmp_path / "a.npz", arr_0=values, mu=np.arange(3.0), sigma=np.asfortranarray(np.arange(9.0).reshape(3, 3)))
        found = read_archive(tmp_path / "a.npz")
        for run in (slice(0, 2), slice(5, 7), slice(1, 4), slice(None)):  # forwards and back
            assert torch.equal(found.pictures[run], expected[run])
        assert torch.equal(found.moments.covariance, torch.arange(9.0, dtype=torch.float64).view(3, 3))
        assert len(found.pictures) == 7


def test_pictures_are_written_and_read_a_batch_at_a_time(tmp_path):
    count, size, batch = 96, 128, 8  # 4.5 MiB in all
    generator = torch.Generator().manual_seed(0)

    def batches():
        for _ in range(count // batch):
            yield torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)

    tracemalloc.start()
    try:
        write_archive(tmp_path / "a.npz", batches(), count)
        found = read_archive(tmp_path / "a.npz")
        for start in range(0, count, batch):
            assert found.pictures[start : start + batch].shape == (batch, 3, size, size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * 3 * size**2 * 0.75
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["arr_0"].shape == (count, size, size, 3)


@pytest.mark.parametrize("declared", [3, 5])
def test_an_archive_of_another_number_of_pictures_is_none(declared, pictures, tmp_path):
    with pytest.raises(DataError, match=f"takes {declared} pictures, and there are 4"):
        write_archive(tmp_path / "a.npz", [pictures(4)], declared)
    assert list(tmp_path.iterdir()) == []
