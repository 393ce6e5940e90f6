"""The result of an evaluation as one JSON file: metrics, floor, counts, settings, versions and warnings."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
from pathlib import Path

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
    kind: str,
    metrics: dict[str, float],
    floor: dict[str, float],
    num_images: int,
    num_reference: int,
    num_floor: int,
    settings: dict,
    warnings: list[str],
) -> dict:
    """A result dict; ``num_floor`` is the N on each side of the floor, the other two are the sides of the metrics."""
    return {
        "kind": kind,
        "metrics": metrics,
        "floor": floor,
        "num_images": num_images,
        "num_reference": num_reference,
        "num_floor": num_floor,
        "settings": settings,
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
    """Writes a result as JSON: the file is complete or absent, never half. Values that are not finite become null."""
    write_json(path, _finite(result))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
