"""What a step costs on a device: time, kernels, waits and memory; for the parts of benchmarks/gpu_training.py."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_machine import wait_for
from benchmarks.live_bytes import LiveBytes
from benchmarks.syncs import counting_syncs
from wvq.errors import first_line
from wvq.memory import GIB

Step = Callable[[], object]
WARMUP, LEAST_STEPS, MOST_SECONDS = 2, 5, 1.0  # steps before the timed ones; and how long those go on


def release() -> None:
    """Give back what the case before has left: memory, and compiled code with its guards."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def step_seconds(step: Step, device: str, seconds: float = MOST_SECONDS) -> float:
    """Median time of a step, of the steps of some seconds on a GPU; the processor does not wait for it in between."""
    if device == "cpu":
        times = [time.perf_counter()]
        for _ in range(LEAST_STEPS):
            step()
            times.append(time.perf_counter())
        return statistics.median(b - a for a, b in itertools.pairwise(times))
    marks = [torch.cuda.Event(enable_timing=True)]
    marks[0].record()
    started = time.perf_counter()
    while len(marks) <= LEAST_STEPS or time.perf_counter() - started < seconds:
        step()
        marks.append(torch.cuda.Event(enable_timing=True))
        marks[-1].record()
    wait_for(device)
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) / 1e3


def kernels_of(step: Step, device: str) -> list[tuple[str, float, int]]:
    """Name, milliseconds and count of the kernels of one step, the costliest first; none on a CPU."""
    if device == "cpu":
        return []
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        step()
        wait_for(device)
    events = [event for event in profiled.key_averages() if event.device_type == DeviceType.CUDA]
    rows = [(event.key, event.self_device_time_total / 1e3, event.count) for event in events]
    return sorted(rows, key=lambda row: -row[1])


def cost_of(build: Callable[[], Step], device: str, profiled: bool = True) -> dict[str, Any]:
    """What a step costs, on a device that holds nothing else.

    Args:
        build: makes model and optimiser, and gives the step.
        device: where they are.
        profiled: whether kernels are looked at too; starting the profiler takes seconds.

    Returns:
        ``ms``, its median; ``first_s``, from the start of building to the end of the first step, with compilation;
        ``peak_GiB`` that was allocated; ``waits`` of one step; if profiled, its ``kernels``, ``busy_ms``, in which they
        ran, and the costliest of them, ``top``.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step = build()
    step()
    wait_for(device)
    first = time.perf_counter() - start
    for _ in range(WARMUP):
        step()
    wait_for(device)
    seconds = step_seconds(step, device)
    row: dict[str, Any] = {"ms": 1e3 * seconds, "first_s": first}
    if device != "cpu":
        row["peak_GiB"] = torch.cuda.max_memory_allocated() / GIB
    with counting_syncs(device) as waits:
        step()
    row["waits"] = len(waits)
    if waits:
        row["first_wait"] = waits[0]
    if profiled and (kernels := kernels_of(step, device)):
        row |= {"kernels": sum(count for *_, count in kernels), "busy_ms": sum(ms for _, ms, _ in kernels)}
        row["top"] = "; ".join(f"{name[:36]} {ms:.1f} ms x{count}" for name, ms, count in kernels[:5])
    return row


def peak_bytes(work: Step, device: str) -> int:
    """Bytes that ``work`` allocates at most, beside what is there before."""
    if device == "cpu":
        with LiveBytes() as live:
            work()
        return live.peak
    wait_for(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait_for(device)
    return torch.cuda.max_memory_allocated() - before


def rows_in_time(
    cases: Iterable[tuple[Mapping[str, Any], Callable[[], Mapping[str, Any]]]], seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for each case, as far as the time goes; a case that fails has the error in its row.

    Args:
        cases: what names a case, and what measures it.
        seconds: no case begins after them.
    """
    end = time.monotonic() + seconds
    for names, measure in cases:
        if time.monotonic() > end:
            yield {**names, "failed": "no time was left"}
            continue
        try:
            yield {**names, **measure()}
        except (RuntimeError, ImportError, OSError) as error:
            yield {**names, "failed": f"{type(error).__name__}: {first_line(error)}"[:300]}
        release()
