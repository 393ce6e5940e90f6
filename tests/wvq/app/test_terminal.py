"""The terminal preview: half blocks of the right colours, and silence where there is no terminal."""

import io
import re
import sys

import pytest
from PIL import Image

from wvq.app.terminal import as_blocks, show


def test_one_character_holds_two_pixels():
    picture = Image.new("RGB", (1, 2))
    picture.putpixel((0, 0), (255, 0, 0))
    picture.putpixel((0, 1), (0, 0, 255))
    assert as_blocks(picture, 10) == "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m"


def test_wide_pictures_are_shrunk_to_the_columns():
    lines = as_blocks(Image.new("RGB", (64, 32), "white"), 16).splitlines()
    assert len(lines) == 4
    assert {line.count("▀") for line in lines} == {16}


def test_an_odd_last_row_is_completed_in_white():
    text = as_blocks(Image.new("RGB", (1, 3), "black"), 10)
    assert re.findall(r"48;2;(\d+);", text) == ["0", "255"]


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251", "utf-8"])
def test_a_terminal_without_half_blocks_shows_no_picture(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", Terminal(written, encoding=encoding))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(Image.new("RGB", (4, 4)))
    sys.stdout.flush()
    assert ("▀".encode() in written.getvalue()) == (encoding == "utf-8")
    assert bool(written.getvalue()) == (encoding == "utf-8")


def test_nothing_is_printed_without_a_terminal(capsys):
    show(Image.new("RGB", (4, 4)))
    assert capsys.readouterr().out == ""
