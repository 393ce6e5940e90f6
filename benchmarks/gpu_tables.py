"""The figures of benchmarks/gpu.py as Markdown: a table of the parts, then what each part has measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def tables(result: Mapping[str, Any]) -> str:
    """The content of a ``gpu.json`` as Markdown."""
    parts = result["parts"]
    facts = {name: value for name, value in result.items() if name != "parts"}
    states = [{"part": name, "state": part["state"], "seconds": part.get("seconds")} for name, part in parts.items()]
    blocks = [", ".join(f"{name}: {text(value)}" for name, value in facts.items()), table(states)]
    for name, part in parts.items():
        found = rendered(part["rows"][0] if len(part["rows"]) == 1 else part["rows"])
        lines = "\n".join(f"    {line}" for line in part.get("last_lines", ()))
        blocks += [f"## {name}", *found, *([lines] if lines else [])] if found or lines else []
    return "\n\n".join(blocks)


def rendered(value: Any) -> list[str]:
    """Blocks of Markdown: rows as tables, the plain values of a mapping in one line, its others one by one.

    Rows whose first names differ are of different kinds: each kind has a table of its own.
    """
    if is_rows(value):
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for row in value:
            kinds.setdefault(next(iter(row), ""), []).append(row)
        return [table(rows) for rows in kinds.values()]
    if not isinstance(value, Mapping):
        return ["\n".join(f"    {line}" for line in value) if isinstance(value, list) else text(value)]
    plain = {name: item for name, item in value.items() if not isinstance(item, Mapping | list)}
    blocks = [", ".join(f"{name}: {text(item)}" for name, item in plain.items())] if plain else []
    nested = {name: item for name, item in value.items() if name not in plain}
    if nested and all(is_flat(item) for item in nested.values()):  # alike, by name: the rows of one table
        return [*blocks, table([{"": name, **item} for name, item in nested.items()])]
    for name, item in nested.items():
        blocks += [f"**{name}**", *rendered(item)]
    return blocks


def is_rows(value: Any) -> bool:
    """Whether a value is a list of mappings."""
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def is_flat(value: Any) -> bool:
    """Whether a value is a mapping of plain values."""
    return isinstance(value, Mapping) and not any(isinstance(item, Mapping | list) for item in value.values())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table, with a column for each name that one of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([text(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(value: Any) -> str:
    """A value in a cell: four significant digits, and nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")
