"""Text files that anyone may have written: UTF-8, with or without a byte order mark, or UTF-16 with one."""

from __future__ import annotations

import codecs
from pathlib import Path

from wvq.checks import PATH
from wvq.errors import ConfigError
from wvq.files.user_folders import expand_user

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_plain_text(file: str | Path) -> str:
    r"""The text of a file, its line ends as they are: use ``split("\n")``, as other characters end no line.

    Raises:
        OSError: it cannot be read.
        ValueError: as of :func:`plain_text`.
    """
    return plain_text(Path(file).read_bytes())


def text_lines(file: str | Path, name: str, what: str) -> list[str]:
    """The lines of a text file that a user gives, which end at a line feed alone; blank ones do not count.

    Args:
        file: the file.
        name: of the option that gives it, for errors.
        what: the lines hold, for errors.

    Raises:
        ConfigError: the file cannot be read, is in another encoding than UTF-8 or UTF-16, or holds no lines.
    """
    path = expand_user(file, name, PATH)
    try:
        lines = read_plain_text(path).split("\n")
    except OSError as error:
        raise ConfigError(f"{name}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{name}: {path}: {error}") from error
    written = [line.strip() for line in lines if line.strip()]
    if not written:
        raise ConfigError(f"{name}: {path} holds no {what}; write one a line")
    return written


def plain_text(content: bytes) -> str:
    """The text that the bytes of a file hold.

    Raises:
        ValueError: it is in another encoding; the message names the line and the remedy, and not the file.
    """
    try:
        text = content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        code = f"byte {content[error.start : error.start + 1].hex()}"
        likely = ("UTF-16LE", "UTF-16") if b"\0" in content else ("LATIN1", "Latin-1")
        raise ValueError(f"line {line} is not UTF-8 text ({code}): {_remedy(likely[0])} if it is {likely[1]}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"line {line} is not UTF-8 text (a zero byte): {_remedy('UTF-16LE')} if it is UTF-16")
    return text


def _remedy(encoding: str) -> str:
    return f"convert it with iconv -f {encoding} -t UTF-8"
