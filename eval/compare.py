"""Two or more results side by side; ranked only where they were measured in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from wvq.errors import DataError
from wvq.eval.figures.comparison import floor_beside
from wvq.eval.figures.metrics import is_better_higher
from wvq.eval.report.markdown import markdown_table
from wvq.eval.report.results import is_result
from wvq.files.atomic import read_json
from wvq.files.user_folders import expand_user
from wvq.generator.base.sampling_settings import SamplingSettings

# What a figure depends on beside the model. Sampling settings belong to the model: they may differ, and are shown.
PROTOCOL = (
    "kind",
    "num_images",
    "num_reference",
    "num_floor",
    "settings.feature_network",
    "settings.feature_network_sha256",
    "settings.feature_network_input",
    "settings.reference.sha256",
    "settings.reference.kind",
    "settings.reference.forced",
    "settings.reference.image_size",
    "settings.reference.crop",
    "settings.classes",
    "settings.prompts",
    "settings.clip_sha256",
    "settings.lpips_sha256",
)
# What is shown where it differs: how samples were drawn.
SAMPLING = (*(field.name for field in fields(SamplingSettings)), "resize", "dtype", "averaging_decay", "seed")


def compare_results(files: Sequence[str | Path]) -> str:
    """A Markdown table of results, best figures in bold, with floors and the sampling settings that differ.

    Args:
        files: results of ``wvq evaluate``, at least two.

    Raises:
        DataError: fewer than two, no results, or results of another protocol; the message names the fields that differ.
    """
    if len(files) < 2:
        raise DataError("compare needs at least two results")
    files = [expand_user(file, "results") for file in files]
    results = [_read(file) for file in files]
    problems = []
    for name in PROTOCOL:
        values = [_field(result, name) for result in results]
        differing = [(file, value) for file, value in zip(files[1:], values[1:], strict=True) if value != values[0]]
        problems += [
            f"{name} is {_short(values[0])} in {files[0]} and {_short(value)} in {file}" for file, value in differing
        ]
    if problems:
        raise DataError(f"not comparable: {'; '.join(problems)}")
    names = [name for name in results[0]["metrics"] if all(_number(result, name) for result in results)]
    if not names:
        raise DataError("not comparable: the results have no metric in common")
    head = ["metric", "better", *(str(file) for file in files), "real against real"]
    rows = []
    for name in names:
        higher = is_better_higher(name)
        values = [result["metrics"][name] for result in results]
        best = f"{max(values) if higher else min(values):.4f}"  # as printed: figures that look equal are both best
        figures = [f"**{value:.4f}**" if f"{value:.4f}" == best else f"{value:.4f}" for value in values]
        floor = floor_beside(results[0], name)
        rows.append([name, "higher" if higher else "lower", *figures, f"{floor:.4f}" if floor is not None else ""])
    first = results[0]
    note = f"{first['kind']}, N = {first['num_images']:,} against {first['num_reference']:,}; {_network(first)}"
    return "\n".join([note, "", markdown_table(head, rows), *_differences(files, results)])


def _differences(files: Sequence[str | Path], results: Sequence[dict[str, Any]]) -> list[str]:
    """Lines on the sampling settings in which the results differ."""
    lines = []
    for name in SAMPLING:
        values = [result["settings"].get(name) for result in results]
        if any(value != values[0] for value in values):
            listed = ", ".join(f"{value} in {file}" for file, value in zip(files, values, strict=True))
            lines.append(f"{name}: {listed}")
    return ["", *lines] if lines else []


def _read(file: str | Path) -> dict[str, Any]:
    result = read_json(file, DataError, f"{file} does not exist")
    if not is_result(result):
        raise DataError(f"{file} is no result of wvq evaluate")
    return result


def _field(result: dict[str, Any], name: str) -> Any:
    value: Any = result
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _number(result: dict[str, Any], name: str) -> bool:
    value = result["metrics"].get(name)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _network(result: dict[str, Any]) -> str:
    reference = result["settings"].get("reference") or {}
    name = result["settings"].get("feature_network")
    return f"features of {name}, {reference.get('kind', 'unknown')} reference {str(reference.get('sha256'))[:8]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
