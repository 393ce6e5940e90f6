"""Sampling on a GPU and its peers: their tiny forms, what a step must read, and that the peers draw as they should."""

import pytest
import torch

from benchmarks import gpu_peers
from benchmarks.gpu_sampling import (
    CASES,
    GREEDY,
    KERNELS,
    build,
    by_kernel,
    draw,
    kernels_a_code,
    sampling,
    step_bytes,
)
from benchmarks.sampling import build_llama
from wvq.generator.base.guidance import guide

LONG = 3_600.0  # seconds: compiling takes a minute with some versions of torch


def test_each_case_has_a_row():
    rows = list(sampling("cpu", True, LONG))
    cases = [row for row in rows if "size" in row]
    assert [(row["size"], row["batch"], row["mode"]) for row in cases] == [(c.size, c.batch, c.mode) for c in CASES]
    measured = [row for row in cases if row["mode"] not in KERNELS]  # Triton needs a GPU
    assert not [row for row in measured if "failed" in row]
    assert all(row["ms_a_code"] > row["floor_ms"] > 0 for row in measured)
    assert all(row["times_floor"] == pytest.approx(row["ms_a_code"] / row["floor_ms"]) for row in measured)
    equal = {row["mode"]: row for row in rows if "equal_codes" in row}
    for mode in ("loop", "eager_graph"):
        assert {value for name, value in equal[mode].items() if name.endswith(("_cpu", "_loop"))} == {1.0}


def test_without_time_rows_say_so():
    assert {row["failed"] for row in sampling("cpu", True, -1.0)} == {"no time was left"}
    assert {row["failed"] for row in gpu_peers.sampling_peers("cpu", True, -1.0)} == {"no time was left"}


def test_a_step_reads_blocks_head_and_half_a_cache():
    model = build("B", "cpu", True)
    width, inner, layers = 64, model.config.intermediate_size, 2
    block = width * (3 * width + width + 3 * inner) + 2 * width
    weights = 4 * (layers * block + 64 * width)
    assert step_bytes(model, 0) == weights
    assert step_bytes(model, 6) - weights == 4 * 6 * (1 + 8) * layers * 2 * width
    assert step_bytes(model.to(torch.bfloat16), 6) == (weights + 4 * 6 * 9 * layers * 2 * width) // 2


def test_a_cpu_runs_no_kernels():
    assert kernels_a_code("cpu", True, "loop") == 0


def test_kernels_between_the_first_draw_and_the_last_are_timed():
    step = [("product", 0.0, 3.0), ("product", 4.0, 5.0), ("Memset", 5.0, 6.0), ("_draw_kernel", 6.0, 8.0)]
    spans = [(name, 10 * number + start, 10 * number + end) for number in range(3) for name, start, end in step]
    rows = by_kernel([("prefix", -9.0, -1.0), *reversed(spans), ("product", 90.0, 99.0)])
    assert rows == [
        {"kernel": "a step", "a_code": 3, "us_a_code": 10},
        {"kernel": "product", "a_code": 2, "us": 2, "us_a_code": 4},
        {"kernel": "_draw_kernel", "a_code": 1, "us": 2, "us_a_code": 2},
    ]


# ---- peers


def test_each_peer_has_a_row_a_batch():
    rows = list(gpu_peers.sampling_peers("cpu", True, LONG))
    assert len({(row["peer"], row["batch"]) for row in rows}) == len(rows) == 8
    assert all(row["ms_a_code"] > 0 for row in rows)


def test_the_plain_loop_draws_what_the_sampler_draws():
    model, labels = build("B", "cpu", True), torch.arange(3)
    codes = gpu_peers.plain_loop(model, labels, 16, lambda logits: logits.argmax(-1))
    assert torch.equal(codes, draw(model, 3, GREEDY).flatten(1))


def test_generate_over_two_rows_is_guided(monkeypatch):
    """The likeliest codes, compared with whole passes over both halves."""
    model = build("B", "cpu", True)
    llama, codes, labels = build_llama(model), model.config.num_codes, torch.arange(3)
    monkeypatch.setattr(gpu_peers, "draw_codes", lambda logits: logits.argmax(-1))
    drawn = gpu_peers.generate_two_rows(llama, labels, codes, 8, compiled=False)
    null = torch.full_like(labels, llama.config.vocab_size - 1)
    tokens = torch.cat((torch.cat((codes + labels, null))[:, None], drawn.repeat(2, 1)[:, :-1]), 1)
    with torch.no_grad():
        logits = guide(llama(tokens).logits[..., :codes], gpu_peers.SCALE)
    assert torch.equal(logits.argmax(-1), drawn)
