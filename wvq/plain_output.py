"""Output without control characters: nothing in a class name, a caption or a path can control the terminal.

An escape sequence can move the cursor over what was printed, recolour or retitle a terminal, and a change of direction
can make one name look like another. They are shown as their code (``\\x1b``), as is what the terminal's encoding lacks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# C0 (but tab and line feed) and C1 controls; marks and overrides of direction; line and paragraph separators; halves of
# surrogate pairs, which no encoding takes.
_COMMANDS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_COMMANDS}]")
_UNSAFE_BESIDE_BARS = re.compile(rf"(?!\r|\x1b\[A)[{_COMMANDS}]")  # what tqdm moves its bars with


def printable(text: str) -> str:
    """The text with control characters, but tabs and line ends, as their codes."""
    return _UNSAFE.sub(_code, text)


def one_line(text: object) -> str:
    """The text on one line: runs of white space become one blank, other control characters their codes."""
    return printable(" ".join(str(text).split()))


def _code(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


class PlainStream:
    """A text stream that writes what is :func:`printable`, in the characters of its encoding.

    Args:
        stream: where to; also reachable for output of our own, such as a picture in colours.
        bars: let through what progress bars move by: carriage return and cursor up.
    """

    def __init__(self, stream: TextIO, bars: bool = False):
        self.stream = stream
        self._unsafe = _UNSAFE_BESIDE_BARS if bars else _UNSAFE

    def write(self, text: str) -> int:
        """Write a text; returns its number of characters."""
        plain = self._unsafe.sub(_code, text)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(plain.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # while a copy is made there is none yet
            raise AttributeError(name)
        return getattr(self.stream, name)


def behind(stream: TextIO) -> TextIO:
    """The stream itself, for output of our own that holds control characters."""
    return stream.stream if isinstance(stream, PlainStream) else stream


@contextmanager
def plain_output() -> Iterator[None]:
    """Within the block standard output and error are plain streams."""
    before = sys.stdout, sys.stderr
    plain = tuple(
        stream if stream is None or isinstance(stream, PlainStream) else PlainStream(stream, bars)
        for stream, bars in zip(before, (False, True), strict=True)
    )
    sys.stdout, sys.stderr = plain
    try:
        yield
    finally:  # but what was put in their place since, as after a broken pipe, stays
        sys.stdout = before[0] if sys.stdout is plain[0] else sys.stdout
        sys.stderr = before[1] if sys.stderr is plain[1] else sys.stderr
