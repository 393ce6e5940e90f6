"""What a figure was measured on, how tensors get there, and how many processes read pictures beside it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from wvq.distributed import world_size
from wvq.errors import ConfigError

MOST_LOADERS = 16  # of one process


def loader_processes(device: str, asked: int | None = None) -> int:
    """Loader processes of one process: as many as asked for.

    Where nobody asks, on a GPU its share of the machine's cores, at most ``MOST_LOADERS``; on a CPU none, since there
    the model itself takes all cores.

    Args:
        device: type of the device that the model runs on, such as ``cuda``.
        asked: how many somebody wants.

    Raises:
        ConfigError: a negative number.
    """
    if asked is not None and asked < 0:
        raise ConfigError(f"num_workers must be at least 0, not {asked}")
    if asked is not None or device == "cpu":
        return asked or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_LOADERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # which the launcher sets


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor of the processor's on a device, by pinned memory where a plain copy would wait for the device."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def processor_name() -> str:
    """Name of the CPU, as the system tells it."""
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
    machine: dict[str, str | int] = {}
    if device != "cpu":
        machine["accelerator"] = torch.cuda.get_device_name() if device == "cuda" else device
    machine |= {"processor": processor_name(), "threads": torch.get_num_threads(), "processes": world_size()}
    return machine | {"system": platform.platform()}
