"""The machine of a run on a GPU: its name, driver and versions, and the two ceilings that other figures compare with.

A copy within the device's memory, bytes read and written, and a product of two bfloat16 matrices: both on random data,
medians over rounds.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable

import torch

from wvq.hardware import hardware
from wvq.memory import GIB

PACKAGES = ("torch", "triton", "transformers", "accelerate", "torchvision", "vector-quantize-pytorch")


def wait_for(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()


def median_seconds(run: Callable[[], object], device: str, rounds: int = 5, warmup: int = 1) -> float:
    """Median time of a call, with the wait for the device at its end.

    Args:
        run: the call.
        device: where it works.
        rounds: calls that are timed.
        warmup: calls before them.
    """
    times = []
    for number in range(warmup + rounds):
        wait_for(device)
        start = time.perf_counter()
        run()
        wait_for(device)
        if number >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_bandwidth(device: str, megabytes: int = 2_048) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.randint(0, 2**31 - 1, (megabytes * 2**18,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device, rounds=9, warmup=3)


def product_rate(device: str, side: int = 8_192) -> float:
    """Operations a second of a product of two matrices in bfloat16."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device, rounds=9, warmup=3)


def driver_version() -> str | None:
    """Version of NVIDIA's driver; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    done = subprocess.run(
        [program, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
    )
    return done.stdout.split("\n")[0].strip() or None


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the packages that figures depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str, tiny: bool) -> dict:
    """What the machine is and what it can do at most."""
    facts: dict = {**hardware(device), **versions()}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        facts |= {"driver": driver_version(), "memory_GiB": round(card.total_memory / GIB, 1)}
        facts |= {"multiprocessors": card.multi_processor_count, "capability": f"{card.major}.{card.minor}"}
    facts["copy_GB_s"] = round(copy_bandwidth(device, 8 if tiny else 2_048) / 1e9, 1)
    facts["bf16_product_TFLOP_s"] = round(product_rate(device, 128 if tiny else 8_192) / 1e12, 3)
    return facts
