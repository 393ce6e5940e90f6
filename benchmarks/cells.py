"""Cells of a study, shared among processes: each takes the next one that is free, and finished ones are kept."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from wvq.errors import DataError
from wvq.files.atomic import read_json, write_json
from wvq.files.names import RECIPE_NAME, TRAINING
from wvq.training.checkpoints import find_checkpoints


@contextlib.contextmanager
def claimed(file: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process has locked the file, with ``wait`` after waiting for it; the lock ends with the process."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def goes_on(run: Path) -> bool:
    """Whether the run in a folder can be resumed; what was cut before its first checkpoint is removed."""
    if find_checkpoints(run / TRAINING):
        return True
    if (run / RECIPE_NAME).exists():
        shutil.rmtree(run)
    return False


def run_cells(names: Iterable[str], out: Path, run: Callable[[str, Path], dict]) -> None:
    """Run the cells that have no figures yet.

    Args:
        names: names of the cells, in the order in which they run.
        out: figures go to ``cells/<name>.json`` and, joined, to ``results.json``.
        run: figures of a cell, given its name and its own folder, which may hold the files of a run that was cut short.
    """
    folder, names = out / "cells", list(names)
    for number, name in enumerate(names, start=1):
        file = folder / f"{name}.json"
        with claimed(folder / f"{name}.lock") as mine:
            if not mine or file.exists():
                continue
            print(f"{name} ({number} of {len(names)})", flush=True)
            write_json(file, run(name, folder / name))
        join(out)


def join(out: Path) -> None:
    """Write the figures of all finished cells into one file."""
    files = sorted((out / "cells").glob("*.json"))
    write_json(out / "results.json", {"cells": [read_json(file, DataError, f"{file} is missing") for file in files]})
