"""Tests of reading text files of any origin: what is read, and the line that names every other encoding."""

import pytest

from wvq.errors import ConfigError
from wvq.files.plain_text import read_plain_text, text_lines

TEXT = "красный\u2028é\x85\x0b\x0c\r\nblue\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_utf_8_and_marked_utf_16_are_read_with_their_line_ends(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_plain_text(tmp_path / "a.txt") == TEXT


def test_big_endian_utf_16(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be"))
    assert read_plain_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("plain\r\nn\u00e9e\n".encode("latin1"), r"^line 2 is not UTF-8 text \(byte e9\): .*iconv -f LATIN1 -t UTF-8"),
        ("a\nb\n".encode("utf-16-le"), r"^line 1 is not UTF-8 text \(a zero byte\): .*iconv -f UTF-16LE"),
        ("n\u00e9e\n".encode("utf-16-le"), r"^line 1 is not UTF-8 text \(byte e9\): .*iconv -f UTF-16LE"),
        (b"\xff\xfea", "^line 1 is not UTF-8 text"),
    ],
)
def test_other_encodings_are_named_by_their_line_with_the_remedy(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_plain_text(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_end_at_line_feeds_alone(encoding, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("red\u2028circle\x85a\x0bb\x0cc\r\n\n  кот\n".encode(encoding))
    assert text_lines(file, "prompt_file", "prompts") == ["red\u2028circle\x85a\x0bb\x0cc", "кот"]


def test_lines_that_cannot_be_read_name_the_option(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match=r"^class_names: .*empty\.txt holds no class names; write one a line"):
        text_lines(tmp_path / "empty.txt", "class_names", "class names")
    with pytest.raises(ConfigError, match=r"^class_names: .*nowhere\.txt cannot be read"):
        text_lines(tmp_path / "nowhere.txt", "class_names", "class names")
