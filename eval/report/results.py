"""The result of an evaluation as one JSON file: metrics, floor, counts, settings, versions and warnings."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from wvq.eval.figures.comparison import Comparison
from wvq.files.atomic import write_json
from wvq.hardware import hardware

_LIBRARIES = ("wvq", "torch", "transformers", "datasets", "torch-fidelity", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that an evaluation's figures depend on."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def make_result(
    kind: Literal["generation", "reconstruction"],
    comparison: Comparison,
    settings: Mapping[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """The result of an evaluation.

    Args:
        kind: what was evaluated.
        comparison: figures and numbers of pictures.
        settings: everything else that the figures depend on; ``device`` is the one that did the work.
        warnings: what a reader must know.
    """
    return {
        "kind": kind,
        "metrics": comparison.metrics,
        "floor": comparison.floor,
        **comparison.counts,
        "settings": dict(settings),
        "versions": library_versions(),
        "hardware": hardware(settings.get("device", "cpu")),
        "warnings": warnings,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def is_result(value: dict) -> bool:
    """Whether the object of a JSON file is a result of an evaluation."""
    sound = all(isinstance(value.get(name), dict) for name in ("metrics", "floor", "settings"))
    return sound and value.get("kind") in ("generation", "reconstruction")


def write_result(path: str | Path, result: dict) -> None:
    """Write a result as JSON: the file is complete or absent. Values that are not finite become null."""
    write_json(path, _finite(result))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
