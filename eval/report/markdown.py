"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wvq.plain_output import one_line


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells under their headings, without a line end after the last; no cell can leave its place."""
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")
