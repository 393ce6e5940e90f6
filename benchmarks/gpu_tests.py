"""Runs the tests that compare a GPU with the CPU (``pytest -m gpu``) within a time, and counts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
SUMMARY = "short test summary info"
LAST_LINES = 40
PROCESSES = 4  # compiling kernels takes most of the time, and is done by the CPU
ENDING = 15.0  # seconds that pytest has, once it is interrupted, to report what it has
NOTHING_COLLECTED = 5  # pytest's exit code


def marked_files(folder: Path) -> list[Path]:
    """The test files that say ``gpu`` somewhere: collecting all files would take most of the time."""
    return [file for file in sorted(folder.rglob("test_*.py")) if re.search(r"\bgpu\b", file.read_text("utf-8"))]


def suite(
    device: str, tiny: bool, seconds: float, folder: Path = Path("tests"), ending: float = ENDING
) -> Iterator[dict]:
    """Counts by outcome, and a row for each line of pytest's summary of failures.

    Args:
        device: ``cpu`` skips all of them, each with its reason.
        tiny: run in one process.
        seconds: the limit; ``ending`` seconds before it pytest is interrupted.
        folder: where the tests are.
        ending: what pytest has for an orderly end.
    """
    files = marked_files(folder)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-rfE", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *([] if tiny else [f"--numprocesses={PROCESSES}"])]
    variables = os.environ | {"COLUMNS": "400"}  # of the summary's lines, which pytest cuts
    if device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if not files:  # pytest would take that for all
        yield {"files": 0}
        return
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([*command, *map(str, files)], stdout=output, stderr=subprocess.STDOUT, env=variables)
        cut_off = False
        try:
            process.wait(max(1.0, seconds - ending))
        except subprocess.TimeoutExpired:
            cut_off = True
            process.send_signal(signal.SIGINT)
            try:
                process.wait(ending)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        output.seek(0)
        lines = output.read().splitlines()
    end = next((number for number, line in enumerate(lines) if SUMMARY in line), len(lines))
    outcomes = (OUTCOME.search(line) for line in lines[:end] if "::" in line)
    counts = Counter(outcome[1].lower() for outcome in outcomes if outcome)
    failures = [{"failure": line[:400]} for line in lines[end:] if line.startswith(("FAILED ", "ERROR "))]
    row = {"files": len(files), **counts, "seconds": round(time.monotonic() - start, 1), "cut_off": cut_off}
    if process.returncode not in (0, NOTHING_COLLECTED):
        row["last_lines"] = lines[-LAST_LINES:]
    yield row
    yield from failures
