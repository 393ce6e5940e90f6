"""Plots of the atomic study: the criterion triple over steps, and over the axis that the cells vary."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wvq.eval.atomic.cell import AtomicCell
from wvq.eval.report.plots import COLORS, style_axes

PANELS = (
    ("quantization_error", "quantization error E"),
    ("utilization", "utilization U"),
    ("perplexity", "perplexity C"),
    ("wasserstein_distance", "Gaussian Wasserstein distance W"),
)
AXES = {
    "shift": "shift of the features",
    "separation": "separation of the modes (zeta)",
    "code_scale": "scale of the codes",
    "target_scale": "target scale (tau)",
    "num_codes": "number of codes K",
    "code_dim": "dims of a code D",
}
SETTING = ("distribution", "num_codes", "code_dim", "shift", "separation", "code_scale", "target_scale", "seed")
# Colour and dash of a method are the same in every plot.
_METHODS = ("sliced", "wasserstein", "ema", "online", "linear", "vanilla", "mmd", "affine", "kmeans", "fixed")
_DASHES = ("-", (0, (5, 2)))
_REFERENCE: dict[str, Any] = {"color": "#30363d", "linewidth": 1.2, "linestyle": ":"}


def plot_study(results: list[dict]) -> dict[str, Figure]:
    """Name -> figure: ``curves-...`` for every setting, ``over-<axis>...`` for every axis with several values."""
    figures = {}
    settings = defaultdict(list)
    for result in results:
        if result["curve"]:
            settings[tuple(result["cell"][name] for name in SETTING)].append(result)
    for setting, group in settings.items():
        figures[f"curves-{_name(dict(zip(SETTING, setting, strict=True)))}"] = _curves(group)
    for axis in AXES:
        others = [name for name in SETTING if name != axis]
        lines = defaultdict(list)
        for result in results:
            lines[tuple(result["cell"][name] for name in others)].append(result)
        for setting, group in lines.items():
            if len({result["cell"][axis] for result in group}) > 3:
                figures[f"over-{axis}-{_name(dict(zip(others, setting, strict=True)))}"] = _over(axis, group)
    return figures


def _name(setting: dict) -> str:
    plain = {name: getattr(AtomicCell(), name) for name in SETTING if name != "distribution"}
    parts = [setting["distribution"]] if "distribution" in setting else []
    return "-".join(
        parts + [f"{name}{setting[name]:g}" for name in plain if setting.get(name, 0) not in (0, plain[name])]
    )


def _curves(group: list[dict]) -> Figure:
    figure = Figure(figsize=(9, 6), dpi=150, facecolor="white", layout="constrained")
    counts = sorted({result["cell"]["num_features"] for result in group if result["cell"]["quantizer"] != "kmeans"})
    numbers = " or ".join(f"{count:,}" for count in counts)
    figure.suptitle(f"over the {numbers} features of a step", x=0.01, ha="left", fontsize=9)
    for position, (key, title) in enumerate(PANELS):
        axes = figure.add_subplot(2, 2, position + 1)
        for result in sorted(group, key=lambda result: _METHODS.index(result["cell"]["quantizer"])):
            method, rows = result["cell"]["quantizer"], result["curve"]
            if method != "kmeans":
                _line(axes, [row["step"] for row in rows], [row[key] for row in rows], method)
            elif key == "quantization_error":  # what the others are compared with, whatever their steps
                axes.axhline(result["result"][key], label=method, **_REFERENCE)
        _finish(axes, title, "step")
        if key == "wasserstein_distance":
            axes.set_yscale("log")
            axes.minorticks_off()
        if key == "quantization_error":
            axes.set_ylim(*_settled_range(group))
    _legend(figure)
    return figure


def _settled_range(group: list[dict]) -> tuple[float, float]:
    """Limits of E that hold every line after its first tenth, in which E is tens of times larger."""
    values = [result["result"]["quantization_error"] for result in group]
    for result in group:
        rows = result["curve"]
        values += [row["quantization_error"] for row in rows[len(rows) // 10 :]]
    values = [value for value in values if math.isfinite(value)] or [0.0]  # a run may have diverged
    margin = 0.05 * (max(values) - min(values)) or 0.05 * max(values) or 1.0
    return min(values) - margin, max(values) + margin


def _legend(figure: Figure) -> None:
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(lines[1]), fontsize=9, columnspacing=1.2, frameon=False)


def _over(axis: str, group: list[dict]) -> Figure:
    figure = Figure(figsize=(9, 3.2), dpi=150, facecolor="white", layout="constrained")
    for position, (key, title) in enumerate(PANELS[:3]):
        axes = figure.add_subplot(1, 3, position + 1)
        methods = defaultdict(list)
        for result in group:
            methods[result["cell"]["quantizer"]].append((result["cell"][axis], result["result"][key]))
        for method in sorted(methods, key=_METHODS.index):
            x, y = zip(*sorted(methods[method]), strict=True)
            if method == "kmeans" and axis == "shift":  # a shift changes nothing for it
                axes.axhline(y[0], label=method, **_REFERENCE)
                continue
            _line(axes, x, y, method, marker="o")
        _finish(axes, title, AXES[axis])
        if axis == "num_codes":
            axes.set_xscale("log", base=2)
    _legend(figure)
    return figure


def _line(axes, x, y, method: str, marker: str = "") -> None:
    index = _METHODS.index(method)
    axes.plot(
        x, y, label=method, marker=marker, markersize=3.5, linewidth=1.6,
        color=COLORS[index % len(COLORS)], linestyle=_DASHES[index // len(COLORS)],
    )  # fmt: skip


def _finish(axes, title: str, x: str) -> None:
    style_axes(axes, title, x)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
