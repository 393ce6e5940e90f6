"""Triton's interpreter: runs files of tests of kernels where there is no GPU, each file in a process of its own.

Triton decides when it is imported whether kernels are compiled or interpreted. Such a file is named ``checks_*.py``,
which pytest does not collect by itself, and a test beside it calls :func:`run_interpreted`.
"""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def _loops_by_constants_only() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    old = Version(importlib.metadata.version("triton")) < Version("3.7")
    return old and Version(numpy.__version__) >= Version("2.4")


# Of tests of kernels with loops whose number of turns is a value of theirs.
needs_computed_loops = pytest.mark.skipif(
    _loops_by_constants_only(), reason="before 3.7 Triton's interpreter fails on loops over a value under NumPy 2.4"
)


def run_interpreted(file: str | Path, *options: str, timeout: float = 300) -> None:
    """Run the tests of a file with kernels interpreted on the CPU; all must pass.

    Args:
        file: a file of tests, or one test of it as ``file::name``.
        options: of pytest, such as ``-k name``.
        timeout: seconds.
    """
    _run_tests(file, options, timeout, {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})


def run_compiled(file: str | Path, *options: str, timeout: float = 300) -> None:
    """Run the tests of a file with kernels compiled for the GPU of this machine; all must pass."""
    _run_tests(file, options, timeout, {"TRITON_INTERPRET": "0"})


def checks_of(file: str | Path) -> list[str]:
    """Names of the tests in a file, so that those that take long to compile run one by one, in processes of their own.

    Each may be given to :func:`run_compiled` as ``file::name``.
    """
    return re.findall(r"^def (test_\w+)", Path(file).read_text("utf-8"), re.MULTILINE)


def _run_tests(file: str | Path, options: tuple[str, ...], timeout: float, variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file), *options]
    # A fresh interpreter: a process forked from one that has imported Triton would have its choice.
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
