"""A self-contained HTML report: one file with its pictures inside, that opens offline in a light or a dark browser."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from wvq.errors import ConfigError
from wvq.eval.report.style import SCRIPT, STYLE
from wvq.files.atomic import write_text

# Nothing may be fetched: the report is the same on every machine, and opening it sends nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Block(NamedTuple):
    """A section of pictures: its title, a text, and (picture, caption) pairs."""

    title: str
    text: str
    pictures: Sequence[tuple[Image.Image | Figure, str]]


class Report:
    """Builds the page from top to bottom; every method adds one block and returns the report.

    Text arguments are plain text: they are escaped, a blank line starts a new paragraph, and `backticks` mark code.
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[str] = []
        self._sections: list[tuple[str, str]] = []
        self._figures = 0

    def section(self, title: str, text: str = "") -> Report:
        """Start a section, which also appears in the contents at the top."""
        anchor = f"section-{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        self._blocks.append(f'<h2 id="{anchor}">{_inline(title)}</h2>')
        return self.text(text)

    def text(self, text: str) -> Report:
        """Add paragraphs."""
        self._blocks.append(_paragraphs(text))
        return self

    def figure(self, picture: Image.Image | Figure, caption: str = "", alt: str = "", scale: int = 1) -> Report:
        """Add one picture or chart, enlarged by a click.

        Args:
            picture: a Pillow picture, shown with hard pixels, or a matplotlib figure.
            caption: text under it.
            alt: text for readers who cannot see it; the caption if not given.
            scale: whole-number enlargement of a Pillow picture on the page.
        """
        return self.figures([(picture, caption)], alts=[alt], scale=scale)

    def figures(
        self, items: Sequence[tuple[Image.Image | Figure, str]], alts: Sequence[str] | None = None, scale: int = 1
    ) -> Report:
        """Add (picture, caption) pairs side by side, as far as the window is wide enough; see :meth:`figure`."""
        alts = alts or [""] * len(items)
        cells = [
            self._figure(picture, caption, alt, scale) for (picture, caption), alt in zip(items, alts, strict=True)
        ]
        self._blocks.append(f'<div class="figures">{"".join(cells)}</div>')
        return self

    def _figure(self, picture: Image.Image | Figure, caption: str, alt: str, scale: int) -> str:
        self._figures += 1
        content, width, kind = _png(picture, scale)
        text = html.escape(alt or caption or f"Figure {self._figures}", quote=True)
        source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        legend = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        return (
            f'<figure class="{kind}"><button type="button" class="zoom" title="enlarge" aria-label="Enlarge: {text}">'
            f'<img src="{source}" width="{width}" alt="{text}"></button>{legend}</figure>'
        )

    def block(self, block: Block) -> Report:
        """Add a section with its pictures side by side."""
        return self.section(block.title, block.text).figures(block.pictures)

    def table(
        self,
        rows: Sequence[Mapping[str, Any] | Sequence[Any]],
        columns: Sequence[str] | Mapping[str, str],
        caption: str = "",
    ) -> Report:
        """Add a table; numbers are aligned to the right and rounded for reading.

        Args:
            rows: dicts, or sequences in the order of the columns; a missing or None cell becomes a dash.
            columns: column names, or key -> heading.
            caption: text above it.

        Raises:
            ConfigError: a sequence row with another number of cells.
        """
        headings = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
        cells = [_cells(row, list(headings)) for row in rows]
        numeric = [
            any(isinstance(row[i], int | float) for row in cells)
            and all(row[i] is None or isinstance(row[i], int | float) for row in cells)
            for i in range(len(headings))
        ]
        classes = [' class="number"' if is_number else "" for is_number in numeric]
        head = "".join(f"<th{c}>{_inline(h)}</th>" for c, h in zip(classes, headings.values(), strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{c}>{_inline(_text(v))}</td>" for c, v in zip(classes, row, strict=True)) + "</tr>"
            for row in cells
        )
        legend = f"<caption>{_inline(caption)}</caption>" if caption else ""
        self._blocks.append(
            f'<div class="table"><table>{legend}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
        return self

    def cards(self, items: Sequence[tuple[str, object, str]]) -> Report:
        """Add the headline figures: (label, value, note) each."""
        cards = "".join(
            f'<div class="card"><div class="label">{_inline(label)}</div>'
            f'<div class="value">{_inline(_text(value))}</div><div class="note">{_inline(note)}</div></div>'
            for label, value, note in items
        )
        self._blocks.append(f'<div class="cards">{cards}</div>')
        return self

    def code(self, commands: str | Sequence[str], caption: str = "") -> Report:
        """Add commands to type, one a line."""
        lines = commands if isinstance(commands, str) else "\n".join(commands)
        legend = f'<p class="code-caption">{_inline(caption)}</p>' if caption else ""
        self._blocks.append(f"{legend}<pre><code>{html.escape(lines)}</code></pre>")
        return self

    def warning(self, text: str) -> Report:
        """Add a note that stands out."""
        self._blocks.append(f'<div class="warning" role="note">{_paragraphs(text)}</div>')
        return self

    def html(self) -> str:
        """The whole page."""
        title = html.escape(self.title)
        links = "".join(f'<a href="#{anchor}">{_inline(name)}</a>' for anchor, name in self._sections)
        contents = f'<nav aria-label="Contents">{links}</nav>' if len(self._sections) > 2 else ""
        subtitle = f'<p class="subtitle">{_inline(self.subtitle)}</p>' if self.subtitle else ""
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{title}</h1>{subtitle}{contents}</header>\n"
            + "\n".join(block for block in self._blocks if block)
            + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
        )

    def save(self, path: str | Path) -> None:
        """Write the page; the file is complete or absent."""
        write_text(path, self.html())


def _inline(text: object) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(text)))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_inline(part.strip())}</p>" for part in re.split(r"\n\s*\n", text) if part.strip())


def _cells(row: Mapping | Sequence, keys: list[str]) -> list:
    if isinstance(row, Mapping):
        return [row.get(key) for key in keys]
    if len(row) != len(keys):
        raise ConfigError(f"table: a row has {len(row)} cells for {len(keys)} columns")
    return list(row)


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _png(picture: Image.Image | Figure, scale: int) -> tuple[bytes, int, str]:
    """PNG bytes, width on the page in CSS pixels, and the CSS class."""
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue(), picture.width * scale, "picture"
    picture.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue(), round(picture.get_figwidth() * 100), "chart"
