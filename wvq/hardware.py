"""What a figure was measured on, and how tensors get there."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from wvq.distributed import world_size


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
    found: dict[str, str | int] = {}
    if device != "cpu":
        found["accelerator"] = torch.cuda.get_device_name() if device == "cuda" else device
    found |= {"processor": processor_name(), "threads": torch.get_num_threads(), "processes": world_size()}
    return found | {"system": platform.platform()}
