"""Shows a small picture in a terminal with colours: two pixels a character, as upper half blocks."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
from PIL import Image

from wvq.plain_output import behind


def as_blocks(picture: Image.Image, columns: int) -> str:
    """A picture as lines of 24-bit ANSI half blocks, shrunk to at most ``columns`` characters."""
    picture = picture.convert("RGB")
    if picture.width > columns:
        height = max(2, round(picture.height * columns / picture.width))
        picture = picture.resize((columns, height), Image.Resampling.BOX)
    pixels = np.asarray(picture)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, np.full_like(pixels[:1], 255)])
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = [
            f"\x1b[38;2;{a};{b};{c};48;2;{d};{e};{f}m▀"
            for (a, b, c), (d, e, f) in zip(upper.tolist(), lower.tolist(), strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def show(picture: Image.Image) -> None:
    """Print a picture if the output is a terminal that takes colours and half blocks; else do nothing."""
    takes_colours = os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ
    if sys.stdout.isatty() and takes_colours and _has_blocks(sys.stdout.encoding):
        print(as_blocks(picture, shutil.get_terminal_size().columns - 1), file=behind(sys.stdout))


def _has_blocks(encoding: str | None) -> bool:
    """Whether an encoding has the half block, which ASCII and the encodings of one byte lack."""
    try:
        "▀".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
