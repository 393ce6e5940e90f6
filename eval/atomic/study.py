"""Many cells of the atomic study: presets, a results folder that fills cell by cell, the table and the plots.

    wvq study atomic --preset paper --out runs/atomic
    wvq study atomic --quantizers '[sliced, ema]' --shifts '[0, 3]' --steps 500 --num_features 20000

Cells that are already in the folder with the same settings are not run again: a stopped study goes on where it stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
import platform
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import wvq
from wvq.errors import ConfigError, DataError, near_match
from wvq.eval.atomic.cell import PROTOCOLS, AtomicCell, run_cell
from wvq.eval.atomic.plots import SETTING, plot_study
from wvq.eval.recipes import AtomicRecipe
from wvq.eval.report.markdown import markdown_table
from wvq.files.atomic import read_json, write_json, write_text
from wvq.files.stage_folder import refuse_occupied

logger = logging.getLogger(__name__)

PUBLISHED = Path(__file__).with_name("published.csv")  # last rows of the study of arXiv 2506.15078
BASELINES = ("vanilla", "ema", "online", "linear")

# Each preset is a list of grids; a grid is the product of its axes.
PRESETS = {
    # The published cells of the controlled study, and those of "sliced" beside them.
    "paper": [
        {"distribution": ["gaussian"], "quantizer": [*BASELINES, "wasserstein", "sliced"], "shift": [0, 1, 3, 5]},
        {"distribution": ["uniform"], "quantizer": [*BASELINES, "wasserstein", "sliced"], "shift": [0, 2, 5]},
    ],
    # Two modes, which two moments do not describe.
    "bimodal": [
        {
            "distribution": ["bimodal"],
            "quantizer": ["wasserstein", "mmd", "sliced"],
            "separation": [0, 2, 4],
            "steps": [10_000],
        },
    ],
    # Every shift of the study for this project's method.
    "shifts": [{"distribution": ["gaussian", "uniform"], "quantizer": ["sliced"], "shift": list(range(9))}],
    # What a converged k-means reaches; a shift changes nothing for it.
    "kmeans": [
        {"distribution": [distribution], "quantizer": ["kmeans"], "num_features": [4_000_000], "steps": [25]} | modes
        for distribution, modes in (("gaussian", {}), ("uniform", {}), ("bimodal", {"separation": [2, 4]}))
    ],
    # The affine control: the Gaussian distance is 0 with no training of the alignment.
    "affine": [
        {"distribution": ["gaussian"], "quantizer": ["affine"], "shift": [0, 1, 3, 5]},
        {"distribution": ["uniform"], "quantizer": ["affine"], "shift": [0, 2, 5]},
    ],
    # No training: E of random codes against their width. At high resolution the best is sqrt((D + 2) / D).
    "theory": [
        {"quantizer": ["fixed"], "code_dim": [dim], "num_codes": [num_codes], "code_scale": scales}
        for dim, num_codes, scales in (
            (1, 1024, [1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.73, 1.8, 1.9, 2.0, 2.2, 2.5]),
            (2, 1024, [0.8, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0]),
            (8, 1024, [0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5]),
            (8, 16_384, [0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5]),
        )
    ],
    # No training: what a shift of the mean, and a wrong scale, cost by themselves.
    "sweeps": [
        {"quantizer": ["fixed"], "shift": [0, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8]},
        {"quantizer": ["fixed"], "code_scale": [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]},
        {"quantizer": ["fixed"], "num_codes": [256, 1024, 4096, 16_384, 65_536]},
        {"quantizer": ["fixed"], "code_dim": [2, 4, 8, 16, 32]},
    ],
}  # fmt: skip


def expand(recipe: AtomicRecipe) -> list[AtomicCell]:
    """The cells of a recipe, each checked.

    Raises:
        ConfigError: an unknown preset or an out-of-range field.
    """
    recipe.check()
    given = {
        "quantizer": recipe.quantizers,
        "distribution": recipe.distributions,
        "shift": recipe.shifts,
        "separation": recipe.separations,
        "target_scale": recipe.target_scales,
        "code_scale": recipe.code_scales,
    }
    sizes = {name: getattr(recipe, name) for name in _SIZES if getattr(recipe, name) is not None}
    shared: dict[str, Any] = sizes | {"seed": recipe.seed}
    if recipe.preset is None:
        grids = [{name: values for name, values in given.items() if values is not None}]
    elif recipe.preset in PRESETS:
        grids = [_narrowed(grid, given) for grid in PRESETS[recipe.preset]]
    else:
        raise ConfigError(
            f'preset "{recipe.preset}" is unknown{near_match(recipe.preset, PRESETS)}; one of {", ".join(PRESETS)}'
        )
    cells = []
    for grid in grids:
        for combination in itertools.product(*grid.values()):
            axes: dict[str, Any] = dict(zip(grid, combination, strict=True))
            cell = AtomicCell(**(axes | shared))
            cell.check()
            cells.append(cell)
    if not cells:
        raise ConfigError(f'no cell of preset "{recipe.preset}" has the requested values; leave some out')
    return list(dict.fromkeys(cells))


_SIZES = ("num_codes", "code_dim", "num_features", "steps", "evaluation_features", "num_projections")


def _narrowed(grid: dict, given: dict) -> dict:
    # A preset's axis keeps the requested values; an axis that the preset does not have is added.
    narrowed = dict(grid)
    for name, values in given.items():
        if values is not None:
            narrowed[name] = [value for value in grid[name] if value in values] if name in grid else values
    return narrowed


def run_study(recipe: AtomicRecipe) -> list[dict]:
    """Run all cells of a recipe that ``recipe.out`` does not hold yet, then write its table and plots.

    Returns:
        The results of all cells in the folder, those of earlier runs included.

    Raises:
        ConfigError, DataError: bad settings, a folder that holds other things, or a result file that cannot be read.
    """
    cells = expand(recipe)
    folder = Path(recipe.out)
    if not (folder / "cells").is_dir():
        refuse_occupied(folder, "files")
    bar = tqdm(cells, desc="study", unit="cell", disable=not recipe.progress)
    for cell in bar:
        file = folder / "cells" / f"{cell.name}.json"
        if file.exists() and _is_result_of(cell, read_json(file, DataError, str(file))):
            continue
        write_json(file, run_cell(cell, recipe.progress) | {"software": _software()})
    return report_study(folder)


def _is_result_of(cell: AtomicCell, result: dict) -> bool:
    # A cell's name holds its settings, but not how this version of the study trains its method.
    protocol = dataclasses.asdict(PROTOCOLS[cell.quantizer])
    return result.get("cell") == dataclasses.asdict(cell) and result.get("protocol") == protocol


def report_study(folder: str | Path) -> list[dict]:
    """Write ``results.json`` (no curves), ``table.md`` and the plots of a folder; returns the results of its cells.

    Raises:
        DataError: the folder holds no results, or damaged ones.
    """
    folder = Path(folder)
    results = [read_json(file, DataError, str(file)) for file in sorted((folder / "cells").glob("*.json"))]
    if not results:
        raise DataError(f"{folder} holds no results of a study (cells/*.json)")
    try:
        write_text(folder / "table.md", study_table(results))
        write_json(folder / "results.json", [{k: v for k, v in r.items() if k != "curve"} for r in results])
        for name, figure in plot_study(results).items():
            figure.savefig(folder / f"{name}.png")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'cells'} holds a file that is no result of this study ({error!r})") from error
    return results


def published_figures() -> dict[tuple[str, str, float], dict[str, float]]:
    """(distribution, quantizer, shift) -> the published E, U, C and W of that cell, where there are any."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = ("quantization_error", "utilization", "perplexity", "wasserstein_distance")
    return {
        (row["distribution"], row["quantizer"], float(row["shift"])): {k: float(row[k]) for k in keys if row[k]}
        for row in rows
    }


def study_table(results: list[dict]) -> str:
    """All cells as a Markdown table, with the published figures beside those that have any."""
    published = published_figures()
    default = AtomicCell()
    varying = [
        field.name
        for field in dataclasses.fields(AtomicCell)
        if field.name in _COLUMNS
        and any(result["cell"][field.name] != getattr(default, field.name) for result in results)
    ]
    titles = ["distribution", "quantizer", *varying, "K", "D", "N", "steps", "E", "U %", "C", "W"]
    rows = []
    for result in sorted(results, key=lambda result: _order(result["cell"])):
        cell, figures = result["cell"], result["result"]
        row = [cell["distribution"], cell["quantizer"], *(f"{cell[name]:g}" for name in varying)]
        row += [f"{cell[name]:,}" for name in ("num_codes", "code_dim")]
        trained = cell["quantizer"] != "fixed"
        row += [f"{cell[name]:,}" if trained else "none" for name in ("num_features", "steps")]
        row += _figures(figures)
        key = _published_key(cell)
        rows.append((row, None if key is None else published.get(key)))
    if any(reference for _, reference in rows):
        titles += ["published E", "published U %", "published C", "published W"]
        rows = [(row + _figures(reference or {}), reference) for row, reference in rows]
    return markdown_table(titles, (row for row, _ in rows)) + "\n"


_COLUMNS = ("shift", "separation", "code_scale", "target_scale", "num_projections", "seed")


def _order(cell: dict) -> tuple:
    return tuple(cell[name] for name in (*SETTING, "quantizer"))


def _published_key(cell: dict) -> tuple[str, str, float] | None:
    # The published study is one setting; a cell of another size has no published figure.
    default = AtomicCell()
    fixed = [name for name in SETTING if name not in ("distribution", "shift", "seed")]
    if any(cell[name] != getattr(default, name) for name in fixed):
        return None
    return cell["distribution"], cell["quantizer"], float(cell["shift"])


def _figures(figures: dict[str, float]) -> list[str]:
    formats = (
        ("quantization_error", lambda value: f"{value:.4f}" if value >= 0.1 else f"{value:.4g}"),
        ("utilization", lambda value: f"{100 * value:.2f}"),
        ("perplexity", lambda value: f"{value:,.0f}"),
        ("wasserstein_distance", lambda value: f"{value:.4f}"),
    )
    return [show(figures[name]) if name in figures else "" for name, show in formats]


def _software() -> dict[str, str | int]:
    return {
        "wvq": wvq.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
