"""The hardware of a run: its description for results, transfers to its device, its number of loader processes."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from wvq.checks import integer, or_null, require
from wvq.distributed import world_size

MOST_LOADERS = 16  # of one process


def loader_processes(device: str, requested: int | None = None) -> int:
    """Number of loader processes of one process.

    By default, on a GPU its share of the machine's cores, at most ``MOST_LOADERS``; on a CPU none, since there the
    model itself takes all cores.

    Args:
        device: type of the device that the model runs on, such as ``cuda``.
        requested: the number that a recipe or caller gives; None for the default.

    Raises:
        ConfigError: a negative number.
    """
    requested = require("num_workers", requested, or_null(integer(0)))
    if requested is not None or device == "cpu":
        return requested or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_LOADERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # which the launcher sets


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device, through pinned memory where a plain copy would wait for the device."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def processor_name() -> str:
    """Name of the CPU, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware(device: str = "cpu") -> dict[str, str | int]:
    """Accelerator (if work was done on one), CPU, threads, processes and system.

    Args:
        device: type of the device that did the work, such as ``cuda``.
    """
    facts: dict[str, str | int] = {}
    if device != "cpu":
        facts["accelerator"] = torch.cuda.get_device_name() if device == "cuda" else device
    facts |= {"processor": processor_name(), "threads": torch.get_num_threads(), "processes": world_size()}
    return facts | {"system": platform.platform()}
