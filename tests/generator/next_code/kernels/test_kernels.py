"""Kernels of a sampling step: values of plain torch, interpreted here and compiled on a GPU."""

from pathlib import Path

import pytest

from tests.interpreter import checks_of, needs_computed_loops, run_compiled, run_interpreted

CHECKS = Path(__file__).with_name("checks_kernels.py")

pytest.importorskip("triton")


@needs_computed_loops
def test_kernels_under_the_interpreter():
    run_interpreted(CHECKS)


@pytest.mark.gpu
@pytest.mark.parametrize("check", checks_of(CHECKS))
def test_kernels_on_a_gpu(check):
    run_compiled(f"{CHECKS}::{check}")
