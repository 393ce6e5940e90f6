"""Runs one part of benchmarks/gpu.py in this process, and keeps each of its rows in a file as it comes.

    echo 60 | python -m benchmarks.gpu_part NAME --device cuda --file FILE [--tiny]

The part imports what it needs, and begins when its standard input gives it a line with its seconds.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from wvq.files.atomic import write_json


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Args:
        module: of the folder benchmarks; it holds a function of the part's name, which takes a device, whether to be
            tiny and, if ``bounded``, its seconds. It gives one result, or rows one by one.
        share: of the time.
        bounded: whether the function itself keeps to a time.
        timed: whether it measures times, and so runs alone.
    """

    module: str
    share: float
    bounded: bool = True
    timed: bool = True


# In order of value: should the time run out, the last are missing.
PARTS = {
    "machine": Part("gpu_machine", 10, bounded=False),
    "suite": Part("gpu_tests", 58, timed=False),
    "memory": Part("gpu_training", 30, timed=False),
    "sampling": Part("gpu_sampling", 55),
    "layouts": Part("gpu_layouts", 30),
    "search": Part("gpu_search", 30, bounded=False),
    "generator_training": Part("gpu_training", 55),
    "tokenizer_training": Part("gpu_training", 30),
    "sampling_peers": Part("gpu_peers", 25),
    "alignment_share": Part("gpu_search", 10, bounded=False),
    "loader": Part("gpu_training", 8),
}


def function_of(name: str) -> Callable[..., Mapping[str, Any] | Iterable[Mapping[str, Any]]] | None:
    """The function of a part; None if there is no such module."""
    module = f"benchmarks.{PARTS[name].module}"
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


def run_part(name: str, device: str, tiny: bool, seconds: TextIO, file: Path) -> None:
    """Run a part once a line gives it its seconds; ``file`` then has ``rows``, and ``missing`` if it has no module."""
    function = function_of(name)
    line = seconds.readline()
    if not line:  # the run has ended
        return
    if function is None:
        write_json(file, {"rows": [], "missing": f"there is no benchmarks/{PARTS[name].module}.py"})
        return
    result = function(device, tiny, float(line)) if PARTS[name].bounded else function(device, tiny)
    rows: list[Mapping[str, Any]] = []
    for row in [result] if isinstance(result, Mapping) else result:
        rows.append(row)
        write_json(file, {"rows": rows})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    run_part(arguments.name, arguments.device, arguments.tiny, sys.stdin, arguments.file)


if __name__ == "__main__":
    main()
