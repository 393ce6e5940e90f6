"""Runs the tests that compare a GPU with the CPU (``pytest -m gpu``) within a time, and counts them.

It is a plugin of pytest too, which writes each outcome to a file as it comes: what is cut off is not lost.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MARKED = re.compile(r"pytest\.mark\.gpu\b")
REPORTS = "GPU_TEST_REPORTS"  # variable that names the plugin's file
PROCESSES = 12  # compiling kernels and importing take most of the time, and are done by the CPU
LAST_LINES = 20
MESSAGE = 1_500  # characters of a failure


# ---- the plugin


def pytest_runtest_logstart(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """Write that a test has begun."""
    _write({"test": nodeid, "outcome": "begun"})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write how a test has ended; of what is before and after it, what went wrong."""
    if report.when == "call" or not report.passed:
        outcome = "error" if report.failed and report.when != "call" else report.outcome
        _write({"test": report.nodeid, "outcome": outcome, "message": report.longreprtext[-MESSAGE:]})


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write which file could not be imported."""
    if report.failed:
        _write({"test": report.nodeid, "outcome": "error", "message": report.longreprtext[-MESSAGE:]})


def _write(row: dict[str, str]) -> None:
    if REPORTS in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:  # the process that gathers all reports
        with open(os.environ[REPORTS], "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


# ---- the part


def marked_files(folder: Path) -> list[Path]:
    """The test files that mark something ``gpu``: collecting all files would take most of the time."""
    return [file for file in sorted(folder.rglob("test_*.py")) if MARKED.search(file.read_text("utf-8"))]


def suite(device: str, tiny: bool, seconds: float, folder: Path = Path("tests")) -> Iterator[dict[str, Any]]:
    """A row for each test that fails, as it comes; then counts by outcome, and the tests that were cut off.

    Args:
        device: ``cpu`` skips all of them, each with its reason.
        tiny: run in one process.
        seconds: pytest is ended after them.
        folder: where the tests are.
    """
    files = marked_files(folder)
    if not files:  # pytest would take that for all
        yield {"files": 0}
        return
    start, outcomes = time.monotonic(), dict[str, str]()
    with tempfile.TemporaryDirectory() as scratch:
        reports, log = Path(scratch, "reports"), Path(scratch, "log")
        reports.touch()
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider", "-p", __name__]
        command += [] if tiny else [f"--numprocesses={PROCESSES}", "--dist=worksteal"]
        command += ["--continue-on-collection-errors", *map(str, files)]
        # Of a process that itself runs tests, a worker's variables would make this one take itself for a worker.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        variables |= {REPORTS: str(reports)} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        with log.open("w") as output, reports.open(encoding="utf-8") as written:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
            try:
                running = in_time = True
                while running and in_time:
                    time.sleep(0.2)
                    running, in_time = process.poll() is None, time.monotonic() - start < seconds
                    for row in map(json.loads, written):
                        if row["outcome"] in ("failed", "error") and outcomes.get(row["test"]) != row["outcome"]:
                            yield {"failure": row["test"], "message": row["message"]}
                        outcomes[row["test"]] = row["outcome"]
            finally:
                process.kill()
                process.wait()
        counts = Counter(outcomes.values())
        begun = counts.pop("begun", 0)
        result: dict[str, Any] = {"files": len(files), **counts, "seconds": round(time.monotonic() - start, 1)}
        result["cut_off"] = running
        if begun:
            result["unfinished"] = ", ".join(test for test, outcome in outcomes.items() if outcome == "begun")
        if not counts:  # pytest itself has failed, or had not begun
            result["last_lines"] = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        yield result
