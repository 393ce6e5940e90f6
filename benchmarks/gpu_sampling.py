"""Sampling on a GPU: time of a code by each way of running the step, against what memory alone would take.

Generators of size B, L and 3B, K = 16,384, 16 x 16 codes, 1,000 classes, guidance 2, bfloat16. ``floor_ms``: the bytes
of the weights that a step reads, and of keys and values at half a picture, over the copy bandwidth measured in the same
process. ``first_s``: the first batch of a kind, with its capture and compilation, less a later one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_machine import copy_bandwidth, median_seconds, wait_for
from wvq.errors import first_line
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.captured import MODES, release_captures, using
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.reduced import reduce_weights
from wvq.generator.sampling import sample_codes
from wvq.memory import GIB

SETTINGS = SamplingSettings(guidance_scale=2.0)
GREEDY = SETTINGS.updated(temperature=0.0)
KERNELS = ("fused_graph", "overlapped_graph")  # of this package
LAYERS = ("eager_graph", "loop")  # those of the model
QUICK = (*KERNELS, *LAYERS)  # compiling takes up to a minute: it comes last
TINY = {"size": None, "num_layers": 2, "hidden_size": 64, "num_heads": 2, "num_codes": 64}
SMALL_GRID = [8, 8]  # of what also runs on the CPU
ROUNDS = {"loop": 1}  # of others 3
STEPS = 20  # whose kernels are timed one by one
LAST_KERNEL = "_draw_kernel"  # of a step


@dataclass(frozen=True)
class Case:
    """A row of the table: a size, a batch, a way to run the step, and the seconds without which it is left out."""

    size: str
    batch: int
    mode: str
    needs: float
    int8: bool = False


CASES = [
    *(Case("B", batch, mode, 5) for mode, batch in itertools.product(KERNELS, (1, 64))),
    *(Case("L", 1, mode, 6) for mode in KERNELS),
    *(Case("B", batch, mode, 6) for batch, mode in itertools.product((1, 64), LAYERS)),
    *(Case("B", 8, mode, 4) for mode in QUICK[:3]),
    *(Case("L", 1, mode, 10) for mode in LAYERS),
    *(Case("L", 64, mode, 10) for mode in QUICK),
    *(Case("L", 8, mode, 6) for mode in QUICK[:3]),
    *(Case("3B", batch, mode, 12) for batch, mode in itertools.product((64, 1), QUICK)),
    *(Case("B", batch, "fused_graph", 6, int8=True) for batch in (1, 64)),
    *(Case("B", batch, "compiled_graph", 30) for batch in (1, 64)),
    Case("L", 1, "compiled_graph", 45),
]
assert {case.mode for case in CASES} == set(MODES) - {"auto"}


def build(size: str, device: str, tiny: bool, grid: list[int] | None = None) -> ImageCodeTransformer:
    """A generator with random weights and a random head, in eval mode, made on the device itself."""
    sizes: dict[str, Any] = TINY if tiny else {"size": size, "num_codes": 16_384}
    grid = [4, 4] if tiny else grid or [16, 16]
    torch.manual_seed(0)
    with torch.device(device):
        return ImageCodeTransformer(
            ImageCodeTransformerConfig(**sizes, grid=grid, num_classes=1_000, head="normal")
        ).eval()


def draw(
    model: ImageCodeTransformer,
    batch: int,
    settings: SamplingSettings = SETTINGS,
    fixed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Codes of pictures of the first classes."""
    labels = torch.arange(batch, device=model.device)
    return sample_codes(model, Condition(labels), list(range(batch)), settings, fixed=fixed)


def step_bytes(model: ImageCodeTransformer, rows: int) -> int:
    """Bytes that a step must read: the weights of blocks and head, and the cache of half a picture."""
    config = model.config
    weights = sum(
        tensor.nbytes for part in (model.blocks, model.head) for tensor in (*part.parameters(), *part.buffers())
    )
    tokens = config.prefix_length + config.sequence_length // 2
    values = rows * tokens * config.num_layers * 2 * config.num_kv_heads * config.head_dim
    return weights + values * model.code_embedding.weight.element_size()


def measure(model: ImageCodeTransformer, case: Case, bandwidth: float) -> dict[str, float]:
    """Times and memory of a case."""
    device, length = model.device.type, model.config.sequence_length
    release_captures(model)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with using(case.mode):
        start = time.perf_counter()
        draw(model, case.batch)
        wait_for(device)
        first = time.perf_counter() - start
        seconds = median_seconds(lambda: draw(model, case.batch), device, ROUNDS.get(case.mode, 3), warmup=0)
    floor = step_bytes(model, 2 * case.batch) / bandwidth
    row = {"ms_a_code": 1e3 * seconds / length, "pictures_a_second": case.batch / seconds}
    row |= {"floor_ms": 1e3 * floor, "times_floor": seconds / length / floor, "first_s": max(0.0, first - seconds)}
    if device == "cuda":
        row["peak_GiB"] = torch.cuda.max_memory_allocated() / GIB
    return row


def kernels_a_code(device: str, tiny: bool, mode: str) -> float:
    """Kernels of one more code at batch 1: the difference between pictures of 8 and of 4 rows of codes."""
    counts = []
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    for rows in (4, 8):
        model = build("B", device, tiny, [rows, 8]).to(torch.bfloat16)
        with using(mode):
            draw(model, 1)
            wait_for(device)
            with profile(activities=activities, acc_events=True) as profiled:
                draw(model, 1)
                wait_for(device)
        events = (event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA)
        counts.append(sum(not event.name.startswith("Mem") for event in events))
    return (counts[1] - counts[0]) / 32


def kernel_times(model: ImageCodeTransformer, case: Case) -> list[dict[str, Any]]:
    """Time of each kernel over the last steps of a picture."""
    fixed = torch.zeros(case.batch, *model.config.grid, dtype=torch.int64, device=model.device)
    fixed.flatten(1)[:, -STEPS - 1 :] = -1
    with using(case.mode), profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        draw(model, case.batch, fixed=fixed)
        wait_for(model.device.type)
    events = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in events]
    return [{"kernel": row.pop("kernel"), "batch": case.batch, "mode": case.mode, **row} for row in by_kernel(spans)]


def by_kernel(spans: list[tuple[str, float, float]]) -> list[dict[str, Any]]:
    """Rows of the whole step and of each kernel, the longest first, from their names, starts and ends in microseconds.

    What runs between the first and the last draw counts. A kernel that starts early waits within its time.
    """
    spans = sorted(spans, key=lambda span: span[1])
    draws = [number for number, span in enumerate(spans) if span[0] == LAST_KERNEL]
    inside = [span for span in spans[draws[0] + 1 : draws[-1] + 1] if not span[0].startswith("Mem")]
    steps = len(draws) - 1
    times: dict[str, list[float]] = {}
    for name, start, end in inside:
        times.setdefault(name, []).append(end - start)
    rows = [
        {"kernel": name, "a_code": len(each) / steps, "us": sum(each) / len(each), "us_a_code": sum(each) / steps}
        for name, each in sorted(times.items(), key=lambda item: -sum(item[1]))
    ]
    whole = (spans[draws[-1]][2] - spans[draws[0]][2]) / steps
    return [{"kernel": "a step", "a_code": len(inside) / steps, "us_a_code": whole}, *rows]


def agreement(device: str, tiny: bool, modes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Share of codes in float32 that equal those of the CPU, and those of the loop on the device."""
    model = build("B", "cpu", tiny, SMALL_GRID)
    settings = {"greedy": GREEDY, "drawn": SETTINGS}
    with using("loop"):
        reference = {name: draw(model, 2, setting) for name, setting in settings.items()}
        model.to(device)
        loop = {name: draw(model, 2, setting).cpu() for name, setting in settings.items()}
    for mode in modes:
        row: dict[str, Any] = {"equal_codes": "float32, batch 2", "mode": mode}
        try:
            with using(mode):
                for name, setting in settings.items():
                    codes = draw(model, 2, setting).cpu()
                    row[f"{name}_to_cpu"] = (codes == reference[name]).float().mean().item()
                    row[f"{name}_to_loop"] = (codes == loop[name]).float().mean().item()
        except Exception as error:
            row["failed"] = first_line(error)
        yield row


def checks(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Whether codes are the same, and how many kernels a code takes."""
    yield from agreement(device, tiny, QUICK)
    for mode in QUICK if device == "cuda" else ():
        row: dict[str, Any] = {"kernels": "B, batch 1", "mode": mode}
        try:
            row["kernels_a_code"] = kernels_a_code(device, tiny, mode)
        except Exception as error:
            row["failed"] = first_line(error)
        yield row


def sampling(device: str, tiny: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each case that the time allows; after those of the kernels, whether codes are the same."""
    end = time.monotonic() + seconds
    bandwidth = copy_bandwidth(device, 8 if tiny else 2_048)
    model, built, checked = None, ("", False), False
    for case in CASES:
        if not checked and case.mode not in KERNELS and time.monotonic() < end:
            yield from checks(device, tiny)
            checked = True
        row: dict[str, Any] = {"size": case.size, "batch": case.batch, "mode": case.mode}
        row |= {"weights": "int8"} if case.int8 else {}
        if time.monotonic() + case.needs * (not tiny) > end:
            yield row | {"failed": "no time was left"}
            continue
        try:
            if model is None or built != (case.size, case.int8):
                model = None  # its memory is free before the next is made
                model = build(case.size, device, tiny)
                model = reduce_weights(model, "int8") if case.int8 else model.to(torch.bfloat16)
                built = case.size, case.int8
            yield row | measure(model, case, bandwidth)
            if device == "cuda" and case.size == "B" and case.mode in KERNELS:
                yield from kernel_times(model, case)
        except Exception as error:  # out of memory, or whatever Triton or Inductor raises
            yield row | {"failed": first_line(error)}
