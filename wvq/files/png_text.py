"""A text of a PNG file, found by walking its chunks: no pixel is decoded, and no chunk but the one wanted is read.

Pillow reads every chunk as a whole and decodes the picture to look for text behind it, and a crafted file can make both
arbitrarily large.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

MAX_TEXT_BYTES = 2**20  # before and after decompression

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_text(file: str | Path, keyword: str) -> str | None:
    """The international text (iTXt, PNG specification 11.3.3.4) of a keyword; None if the file holds none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no PNG, or damaged, or the text is larger than 1 MiB.
    """
    with Path(file).open("rb") as opened:
        if opened.read(len(_SIGNATURE)) != _SIGNATURE:
            raise ValueError("no PNG file")
        while len(head := opened.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"iTXt":
                if (text := _text(opened, length, keyword.encode("latin-1") + b"\0")) is not None:
                    return text
            else:
                opened.seek(length + 4, os.SEEK_CUR)
    return None


def _text(opened: BinaryIO, length: int, start: bytes) -> str | None:
    """The text of the chunk whose content begins here, if it begins with ``start``; the file stands behind it then."""
    content = opened.read(min(length, len(start)))
    if content != start:
        opened.seek(length - len(content) + 4, os.SEEK_CUR)
        return None
    if length > MAX_TEXT_BYTES:
        raise ValueError(f"a text of {length:,} bytes")
    content += opened.read(length - len(content))
    if opened.read(4) != struct.pack(">I", zlib.crc32(b"iTXt" + content)):
        raise ValueError("a damaged text")
    compressed, rest = content[len(start) : len(start) + 2], content[len(start) + 2 :]
    _, _, text = rest.split(b"\0", 2)  # before it the language and the keyword in that language
    if compressed[:1] == b"\1":
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(text, MAX_TEXT_BYTES)
        except zlib.error as error:
            raise ValueError("a damaged text") from error
        if unpacker.unconsumed_tail:
            raise ValueError("a text that unpacks to more than 1 MiB")
    return text.decode("utf-8")
