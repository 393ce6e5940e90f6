"""Texts of PNG files, sound and made up: found without decoding, and without more memory than a text may have."""

import struct
import tracemalloc
import zlib

import pytest
from PIL import Image, PngImagePlugin

from wvq.app.describe import describe
from wvq.data.pictures import read_picture
from wvq.errors import DataError, UnreadablePictureError
from wvq.files.png_text import png_text
from wvq.pipelines.sampling_job import PNG_KEY, read_settings


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(file, *chunks, side=1):
    """A PNG of the declared side that has these chunks before its pixels."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    pixels = zlib.compress(b"\0\0")
    file.write_bytes(start + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return file


def text(content, packed=False):
    content = zlib.compress(content) if packed else content
    return chunk(b"iTXt", PNG_KEY.encode() + b"\0" + (b"\1\0" if packed else b"\0\0") + b"\0\0" + content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_what_pillow_writes_is_found(packed, behind, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("other", "no")
    info.add_itxt(PNG_KEY, '{"größe": 1}', zip=packed)
    info.add_text("last", "no")
    if behind:
        info.chunks = [(*entry[:2], True) for entry in info.chunks]
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert png_text(tmp_path / "a.png", PNG_KEY) == '{"größe": 1}'
    assert read_settings(tmp_path / "a.png") == {"größe": 1}
    assert png_text(tmp_path / "a.png", "missing") is None


DAMAGED = text(b'{"seed": 1}')
HOSTILE = {
    "deep": [text(b"[" * 100_000)],
    "digits": [text(b'{"seed": ' + b"9" * 5000 + b"}")],
    "long": [text(b'"' + b"x" * 2**21 + b'"')],
    "bomb": [text(b'"' + b" " * 2**26 + b'"', packed=True)],
    "unpacked": [chunk(b"iTXt", PNG_KEY.encode() + b"\0\1\0\0\0no zlib")],
    "encoding": [text(b'{"a": "\xff"}')],
    "damaged": [DAMAGED[:-6] + b"x" + DAMAGED[-5:]],
    "short": [chunk(b"iTXt", PNG_KEY.encode() + b"\0")],
    "endless": [struct.pack(">I", 2**32 - 1) + b"tEXt"],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_made_up_text_is_none_of_ours(kind, tmp_path):
    file = png(tmp_path / "made-up.png", *HOSTILE[kind])
    tracemalloc.start()
    try:
        assert read_settings(file) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    with pytest.raises(DataError, match="holds no sampling settings"):
        describe(file)


def test_settings_are_read_without_the_pixels(tmp_path):
    file = png(tmp_path / "huge.png", text(b'{"seed": 1}'), side=50_000)
    assert read_settings(file) == {"seed": 1}
    with pytest.raises(UnreadablePictureError, match=r"huge\.png cannot be read as a picture \(more than 178,956,970"):
        read_picture(file)


def test_a_picture_is_read_as_rgb(tmp_path):
    Image.new("L", (3, 2), 7).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").getpixel((0, 0)) == (7, 7, 7)
