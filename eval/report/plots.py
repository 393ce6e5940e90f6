"""Figures of a run (losses, code usage, metrics) in one style that reads on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wvq.errors import DataError

# Okabe and Ito's colour-blind safe palette, strongest contrast on white first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#595959")
_INK = "#30363d"
_GRID = "#d8dee4"


def _axes(width: float = 7.2, height: float = 3.4):
    # Figure without pyplot: no global state, no backend, nothing to close.
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _label(axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=_INK, fontsize=10)
    axes.set_ylabel(y, color=_INK, fontsize=10)


def _count_axis(axes, nbins: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=nbins, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def style_legend(axes, **options) -> None:
    """A legend without a frame."""
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, **options)


def _series(rows: Sequence[Mapping], key: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row[x], row[key]) for row in rows if isinstance(row.get(key), int | float) and x in row]
    points = [point for point in points if math.isfinite(point[1])]
    return tuple(np.array(points, dtype=np.float64).reshape(-1, 2).T)


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving median: a start-up spike does not spread into its neighbours."""
    reach = window // 2
    return np.array([np.median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))])


def loss_curves(
    train: Sequence[Mapping],
    validation: Sequence[Mapping] = (),
    key: str = "loss",
    reference_lines: Mapping[str, float] | None = None,
    x: str = "images",
    validation_key: str | None = None,
    label: str | None = None,
) -> Figure:
    """Training loss (raw and smoothed) and validation loss over the run.

    Args:
        train: rows of the JSONL log, each with ``x`` and ``key``; rows without them are skipped.
        validation: rows of the validation log.
        key: column to draw.
        reference_lines: name -> value, drawn as dashed horizontal lines (such as ln K, the unigram entropy).
        x: column of the horizontal axis.
        validation_key: the column's name in the validation rows, if it is another.
        label: name of the vertical axis; the key if not given.

    Raises:
        DataError: no row has the key.
    """
    figure, axes = _axes()
    steps, values = _series(train, key, x)
    if not len(steps):
        raise DataError(f"the training log has no finite values of {key!r} over {x!r}")
    if len(values) >= 20:
        axes.plot(steps, values, color=COLORS[0], alpha=0.25, linewidth=0.8)
        values = _smooth(values, max(5, len(values) // 25))
    axes.plot(steps, values, color=COLORS[0], linewidth=1.8, label="training")
    held_out, held_out_values = _series(validation, validation_key or key, x)
    if len(held_out):
        axes.plot(
            held_out, held_out_values, color=COLORS[1], linewidth=1.8, marker="o", markersize=3.5, label="held out"
        )
    for color, (name, value) in zip(COLORS[2:], (reference_lines or {}).items(), strict=False):
        axes.axhline(value, color=color, linewidth=1.3, linestyle=(0, (5, 3)), label=f"{name} ({value:.2f})")
    _focus(axes, steps, values, [*held_out_values, *(reference_lines or {}).values()])
    _label(axes, x, label or key)
    _count_axis(axes, nbins=8)
    style_legend(axes)
    return figure


def _focus(axes, steps: np.ndarray, values: np.ndarray, others: Sequence[float]) -> None:
    """Cut a start-up spike off the vertical axis where it would flatten the rest of the curve."""
    later = values[steps >= steps[0] + 0.02 * (steps[-1] - steps[0])]
    low, high = min([*later, *others]), max([*later, *others])
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def code_histogram(counts: Sequence[int] | np.ndarray) -> Figure:
    """Usage of every code, most used first, on a log scale, with utilization U and perplexity C.

    Args:
        counts: how often each of the K codes was chosen (array, tensor or list).

    Raises:
        DataError: no code was chosen.
    """
    counts = np.sort(np.asarray(counts, dtype=np.float64).reshape(-1))[::-1]
    total = counts.sum()
    if not total > 0:
        raise DataError("counts are all zero: no code was chosen")
    used = int((counts > 0).sum())
    shares = counts[:used] / total
    perplexity = math.exp(-(shares * np.log(shares)).sum())

    figure, axes = _axes()
    rank = np.arange(1, used + 1)
    axes.fill_between(rank, shares * 100, shares[-1] * 50, step="mid", color=COLORS[0], alpha=0.2, linewidth=0)
    axes.step(rank, shares * 100, where="mid", color=COLORS[0], linewidth=1.6, label="share of tokens")
    axes.axhline(
        100 / len(counts), color=COLORS[1], linewidth=1.3, linestyle=(0, (5, 3)), label="all codes alike (1 / K)"
    )
    if used < len(counts):
        axes.axvspan(used + 0.5, len(counts), color=COLORS[-1], alpha=0.12, linewidth=0, label="never chosen")
    axes.set_yscale("log")
    axes.set_xlim(0, len(counts) + 1)
    axes.set_ylim(bottom=shares[-1] * 50)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axes.minorticks_off()
    _count_axis(axes, nbins=8)
    axes.set_title(
        f"K = {len(counts):,}    U = {100 * used / len(counts):.1f}%    C = {perplexity:,.0f}    "
        f"({int(total):,} tokens)",
        loc="left",
        fontsize=10,
        color=_INK,
    )
    _label(axes, "codes, most used first", "share of tokens")
    style_legend(axes, loc="upper right")
    return figure


def metric_curves(
    rows: Sequence[Mapping], keys: Sequence[str], x: str = "images", labels: Mapping[str, str] | None = None
) -> Figure:
    """One small panel for each metric of the log, side by side.

    Args:
        rows: rows of the JSONL log; rows without a key are skipped for that key.
        keys: columns to draw.
        x: column of the horizontal axis.
        labels: key -> title.

    Raises:
        DataError: no key has values.
    """
    series = {key: _series(rows, key, x) for key in keys}
    series = {key: (steps, values) for key, (steps, values) in series.items() if len(steps)}
    if not series:
        raise DataError(f"the log has no finite values of {', '.join(keys)} over {x!r}")
    columns = min(3, len(series))
    lines = math.ceil(len(series) / columns)
    figure = Figure(figsize=(7.2, 2.3 * lines), dpi=150, facecolor="white", layout="constrained")
    for position, (key, (steps, values)) in enumerate(series.items()):
        axes = figure.add_subplot(lines, columns, position + 1)
        axes.plot(steps, values, color=COLORS[0], linewidth=1.6, marker="o" if len(steps) < 30 else "", markersize=3)
        style_axes(axes, (labels or {}).get(key, key.replace("_", " ")), x)
        if all(float(step).is_integer() for step in steps):
            _count_axis(axes, nbins=4)
        else:  # a sweep: its values themselves
            axes.set_xticks(steps[:: math.ceil(len(steps) / 7)])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure


def style_axes(axes, title: str, x: str) -> None:
    """One panel of several: a title in place of the vertical axis's name."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_title(title, loc="left", fontsize=9.5, color=_INK)
    axes.set_xlabel(x, fontsize=8.5, color=_INK)
