"""A result of an evaluation to read: a Markdown text, and a page with pictures beside the figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wvq.errors import ConfigError
from wvq.eval.figures.comparison import AT_FLOOR_N, floor_beside
from wvq.eval.report.markdown import markdown_table
from wvq.eval.report.page import Block, Report
from wvq.eval.report.results import is_result
from wvq.files.atomic import read_json, write_text
from wvq.plain_output import one_line

_TITLE = "Evaluation"


def metric_rows(result: Mapping[str, Any]) -> list[tuple[str, float | str, float | None, int]]:
    """Name, value, floor at the same N where there is one, and N of each metric; numbers of several scales as text."""
    rows = []
    for name, value in result["metrics"].items():
        count = result["num_floor"] if name.endswith(AT_FLOOR_N) else result["num_images"]
        shown = ", ".join(f"{one:,.4g}" for one in value) if isinstance(value, list) else value
        rows.append((name, shown, floor_beside(result, name), count))
    return rows


def setting_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every setting as a row, nested ones by dotted names."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = []
        for name, value in values.items():
            if isinstance(value, dict):
                rows += flat(value, f"{prefix}{name}.")
            elif value is not None:
                rows.append((f"{prefix}{name}", str(value)))
        return rows

    return [
        *flat(result["settings"]),
        *flat(result["versions"], "versions."),
        *flat(result["hardware"], "hardware."),
        ("date", result["date"]),
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The result as Markdown: figures with their floors, warnings, and everything that they depend on."""

    def text(value: float | str | None) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"

    figures = [[name, text(value), text(floor), f"{count:,}"] for name, value, floor, count in metric_rows(result)]
    parts = [
        f"# {_TITLE} of {result['kind']}",
        f"{result['num_images']:,} pictures against {result['num_reference']:,}.",
        markdown_table(["metric", "value", "real against real", "N"], figures),
        *(f"Warning: {one_line(warning)}." for warning in result["warnings"]),
        *_sweep_table(result),
        markdown_table(["setting", "value"], setting_rows(result)),
    ]
    return "\n\n".join(parts) + "\n"


def _sweep_table(result: Mapping[str, Any]) -> list[str]:
    rows = result.get("sweep", {}).get("rows", [])
    names = list(rows[0]) if rows else []
    cells = [[f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows]
    return [markdown_table(names, cells)] if rows else []


def summary_files(file: str | Path) -> tuple[Path, Path]:
    """The text and the page beside a result's JSON."""
    file = Path(file)
    stem = file.with_suffix("") if file.suffix == ".json" else file
    return stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.html")


def refuse_foreign_files(file: str | Path) -> None:
    """Refuse a result file if writing it, or the text and page beside it, would overwrite another file.

    Raises:
        ConfigError: the file there is no result, or one beside it is not what was written with one.
    """
    file = Path(file)
    if file.exists() and not is_result(read_json(file, ConfigError, f"{file} is missing")):
        raise ConfigError(f"out: {file} is no result of wvq evaluate and would be written over; choose another name")
    for other in filter(Path.exists, summary_files(file)):
        if not re.search(rf"(^# |<title>){_TITLE} of ", other.read_text(encoding="utf-8", errors="replace")):
            raise ConfigError(f"out: {other} would be written over, and no evaluation wrote it; choose another name")


def write_summary(file: str | Path, result: dict[str, Any], blocks: Sequence[Block]) -> None:
    """Write ``<file>.md`` and ``<file>.html`` beside a result's JSON.

    Args:
        file: the JSON file.
        result: the result.
        blocks: sections of pictures.
    """
    text, page = summary_files(file)
    write_text(text, markdown(result))
    report = Report(f"{_TITLE} of {result['kind']}", f"{result['num_images']:,} pictures; {result['date']}")
    rows = metric_rows(result)
    report.cards(
        [
            (name, value, f"N = {count:,}" + (f", real against real {floor:.4g}" if floor is not None else ""))
            for name, value, floor, count in rows
            if not (name.endswith(AT_FLOOR_N) or isinstance(value, str))
        ]
    )
    for warning in result["warnings"]:
        report.warning(f"{warning[0].upper()}{warning[1:]}.")
    for block in blocks:
        report.block(block)
    report.section(
        "Figures",
        "The floor compares real pictures with other real pictures at the same N: nothing better can be expected. "
        f"Figures that end in `{AT_FLOOR_N}` were taken at the floor's N.",
    )
    report.table(rows, ["metric", "value", "real against real", "N"])
    report.section("Protocol", "Everything that the figures depend on.")
    report.table(setting_rows(result), ["setting", "value"])
    report.save(page)
