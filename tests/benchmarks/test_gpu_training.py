"""Training on a GPU and its peers: the tiny forms of all parts, on the CPU."""

import pytest
import torch

from benchmarks import gpu_training
from benchmarks.gpu_steps import rows_in_time
from benchmarks.gpu_training import GENERATOR_CASES, TOKENIZER_CASES

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
LONG = 3_600.0  # seconds: compiling takes a minute with some versions of torch


def test_each_step_of_the_generator_has_a_row():
    rows = list(gpu_training.generator_training("cpu", True, LONG))
    assert [(row["step"], row["size"]) for row in rows] == [case[:2] for case in GENERATOR_CASES[1:4]]
    for row in rows:
        assert row["tokens_a_second"] == pytest.approx(4 * 16 / row["ms"] * 1e3)
        assert 0 < row["model_share"] < 1
        assert row["waits"] == 0 or row["step"] == "llama", row


def test_each_step_of_the_tokenizer_has_a_row():
    rows = list(gpu_training.tokenizer_training("cpu", True, LONG))
    assert [(row["step"], row["recipe"]) for row in rows] == [case[:2] for case in TOKENIZER_CASES]
    assert all(row["pictures_a_second"] > 0 for row in rows)
    assert all(row["waits"] == 0 for row in rows if row["step"] == "ours"), rows


def test_estimates_of_memory_hold():
    rows = list(gpu_training.memory("cpu", True, LONG))
    assert {row["memory"] for row in rows} == {
        "training L",
        "training B",
        "sampling B",
        "sampling L",
        "losses B",
        "decoding",
    }
    assert all(row["peak_to_estimate"] == pytest.approx(1, abs=0.15) for row in rows), rows


def test_loading_is_measured_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    rows = list(gpu_training.loader("cpu", True, LONG))
    assert len(rows) == 3
    assert all(row["pictures_a_second"] > 0 for row in rows)
    assert torch.get_num_threads() == threads


def test_a_case_that_fails_and_one_without_time_cost_themselves_alone():
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore")

    cases = [({"case": 1}, fail), ({"case": 2}, lambda: {"ms": 1.0})]
    rows = list(rows_in_time(cases, 60))
    assert rows == [{"case": 1, "failed": "OutOfMemoryError: CUDA out of memory."}, {"case": 2, "ms": 1.0}]
    assert list(rows_in_time(cases, -1)) == [{"case": n, "failed": "no time was left"} for n in (1, 2)]
