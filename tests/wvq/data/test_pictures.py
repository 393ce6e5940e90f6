"""Tests of decoding real files of every odd kind, and of the store that names those that cannot be read."""

import io
import os
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

import wvq.data.pictures
from wvq.data.padding import center_pad
from wvq.data.pictures import PictureStore, decode, read_picture
from wvq.data.pixels import center_crop, to_rgb
from wvq.errors import DataError, UnreadablePictureError

RED, BLUE = (250, 10, 20), (10, 20, 250)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, bit_depth, colour_type, rows: bytes):
    """A PNG file of kinds that Pillow does not write; ``rows`` each begin with the filter byte 0."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def store(*files, largest=8, inside=False):
    rows = [{"bytes": content, "path": f"{index}.png"} for index, content in enumerate(files)]
    table = datasets.Dataset.from_list([{"image": row} for row in rows])
    return PictureStore(table, largest, inside)


def rgb(content):
    return np.asarray(to_rgb(decode({"bytes": content, "path": None})))


def noise(size=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


class TestKinds:
    @pytest.mark.parametrize(
        ("mode", "colour", "kind", "expected"),
        [
            ("L", 77, "PNG", (77, 77, 77)),
            ("L", 77, "JPEG", (77, 77, 77)),
            ("1", 1, "PNG", (255, 255, 255)),
            ("LA", (0, 128), "PNG", (127, 127, 127)),
            ("RGBA", (255, 0, 0, 0), "PNG", (255, 255, 255)),
            ("RGBA", (255, 0, 0, 0), "WEBP", (255, 255, 255)),
            ("RGB", RED, "BMP", RED),
            ("I;16", 257 * 9, "PNG", (9, 9, 9)),
            ("I;16", 257 * 9, "TIFF", (9, 9, 9)),
            ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ],
    )
    def test_modes(self, mode, colour, kind, expected):
        values = rgb(encoded(Image.new(mode, (9, 7), colour), kind))
        assert values.shape == (7, 9, 3)
        assert np.unique(values.reshape(-1, 3), axis=0).tolist() == [list(expected)]

    def test_inverted_cmyk_of_adobe_programs(self):
        content = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
        assert b"Adobe" in content  # and so stored inverted
        assert np.abs(rgb(content).astype(int) - (255, 0, 0)).max() <= 3

    def test_palette_with_transparency(self):
        image = Image.new("P", (2, 1), 0)
        image.putpalette([*BLUE, *RED])
        image.putpixel((1, 0), 1)
        for kind in ("PNG", "GIF"):
            assert rgb(encoded(image, kind, transparency=0)).tolist() == [[[255, 255, 255], list(RED)]]

    def test_sixteen_bit_colour(self):
        row = struct.pack(">B6H", 0, 0, 0x8000, 0xFFFF, 0x0102, 0x00FF, 0xFE00)
        assert rgb(png(2, 1, 16, 2, row)).tolist() == [[[0, 128, 255], [1, 0, 254]]]

    @pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
    def test_the_first_frame_of_an_animation(self, kind, options):
        frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(content)).n_frames == 2
        assert rgb(content)[0, 0].tolist() == list(RED)

    def test_one_pixel(self):
        content = encoded(Image.new("RGB", (1, 1), RED))
        crop = center_crop(store(content).prepared(0), 8)
        assert crop.getcolors() == [(64, RED)]

    @pytest.mark.parametrize("shape", [(301, 203), (90, 400), (64, 48), (700, 31), (5, 9)])
    def test_prepared_pictures_give_the_crops_and_pads_of_their_originals(self, shape):
        image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
        for inside, fitted in ((False, center_crop), (True, lambda picture, size: center_pad(picture, size, "auto"))):
            prepared = store(encoded(image), largest=(16, 24), inside=inside).prepared(0)
            assert fitted(prepared, [16, 24]).tobytes() == fitted(image, [16, 24]).tobytes()
        assert prepared.width < 2 * 24
        assert prepared.height < 2 * 16

    def test_a_picture_too_narrow_for_a_crop_is_padded(self):
        content = encoded(Image.new("RGB", (3000, 1), RED))
        with pytest.raises(
            UnreadablePictureError, match=r"3000 x 1 pixels: too narrow to be enlarged .* take data.fit pad"
        ):
            store(content, largest=(256, 384)).prepared(0)
        prepared = store(content, largest=(256, 384), inside=True).prepared(0)
        colours = center_pad(prepared, [256, 384], "white").getcolors()
        assert sorted(colours) == [(384, RED), (255 * 384, (255, 255, 255))]

    def test_orientation(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        assert rgb(encoded(Image.new("RGB", (4, 2)), "JPEG", exif=exif)).shape == (4, 2, 3)


UNREADABLE = {
    "empty": (b"", "empty, or no picture format"),
    "text": (b"hello", "empty, or no picture format"),
    "half a JPEG": (encoded(noise(), "JPEG")[:1500], "image file is truncated"),
    "most of a JPEG": (encoded(noise(), "JPEG")[:-60], "image file is truncated"),
    "half a progressive JPEG": (encoded(noise(), "JPEG", progressive=True)[:1500], "image file is truncated"),
    "half a PNG": (encoded(noise())[:6000], "image file is truncated"),
    "a PNG with a hole": (encoded(noise())[:6000] + bytes(200) + encoded(noise())[6200:], "broken"),
    "half a GIF": (encoded(noise(), "GIF")[:3000], "image file is truncated"),
    "half a WebP": (encoded(noise(), "WEBP")[:1500], "could not create decoder"),
    "a float TIFF": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "mode F are not supported"),
    "a LAB TIFF": (encoded(Image.new("LAB", (4, 4)), "TIFF"), "mode LAB are not supported"),
    "20,000 x 20,000 pixels": (png(20_000, 20_000, 1, 0, bytes(2501 * 20_000)), "more than 178,956,970 pixels"),
    "a hair": (encoded(Image.new("L", (1, 4_000_000))), "1 x 4000000 pixels: too narrow"),
    "nothing": (None, "No such file"),
}


@pytest.mark.parametrize(("content", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable_files_are_named_with_the_reason(content, reason):
    pictures = store(encoded(noise(16)), content)
    for _ in range(2):  # the second time from memory
        with pytest.raises(
            UnreadablePictureError, match=rf"^1\.png cannot be read as a picture \(.*{reason}"
        ) as caught:
            pictures.prepared(1)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)
    assert pictures.failure(1).startswith("1.png (")
    assert pictures.prepared(0).size == (8, 8)


def test_the_size_limit_holds_before_anything_is_decoded(monkeypatch):
    truncated = encoded(noise())[:6000]
    monkeypatch.setattr(wvq.data.pictures, "MAX_PIXELS", 64 * 64)
    with pytest.raises(UnreadablePictureError, match="truncated"):
        store(truncated).original(0)
    monkeypatch.setattr(wvq.data.pictures, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(UnreadablePictureError, match="more than 4,095 pixels: make it smaller"):
        store(truncated).original(0)


def test_a_machine_out_of_files_or_memory_is_no_fault_of_the_picture(monkeypatch):
    pictures = store(encoded(noise(16)))
    for error in (OSError(24, "Too many open files"), MemoryError()):

        def fail(_, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(wvq.data.pictures, "decode", fail)
            with pytest.raises(DataError, match="out of memory or of open files") as caught:
                pictures.original(0)
        assert not isinstance(caught.value, UnreadablePictureError)
    assert pictures.prepared(0).size == (8, 8)


def test_a_pipe_in_the_place_of_a_picture_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadablePictureError, match=r"pipe\.png .*no file but a pipe, a device or a folder"):
        read_picture(tmp_path / "pipe.png")


def test_names_with_brackets_and_rows_without_a_file():
    table = datasets.Dataset.from_list([{"image": {"bytes": b"", "path": "a (1).png"}}, {"image": None}])
    pictures = PictureStore(table, 8)
    with pytest.raises(UnreadablePictureError, match=r"^a \(1\)\.png cannot be read as a picture"):
        pictures.prepared(0)
    with pytest.raises(UnreadablePictureError, match=r"^picture 1 cannot be read as a picture"):
        pictures.prepared(1)
