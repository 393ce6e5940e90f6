"""The device that a command runs on."""

from __future__ import annotations

import os

import torch

from wvq.distributed import processes
from wvq.errors import ConfigError, first_line


def named_device(value: torch.device | str | int, setting: str = "device") -> torch.device:
    """A device by its name or number, after a look whether it can be used.

    Args:
        value: the device.
        setting: what messages call it.

    Raises:
        ConfigError: it cannot be used here.
    """
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        raise ConfigError(f'{setting} "{value}" cannot be used here ({first_line(error)})') from error


def usable_device(name: str | None = None) -> str:
    """The device to use: the one of that name, or the best available for None.

    Raises:
        ConfigError: it cannot be used here.
    """
    if name is not None:
        device_asked = named_device(name)
        if device_asked.type == "meta":  # torch knows it, but its tensors hold no values
            raise ConfigError(f'device "{name}" cannot be used here (nothing is computed on it)')
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each process has its own device
        device = processes().device
        if name is not None and device_asked.type != device.type:
            raise ConfigError(
                f'device "{name}": each process that was started has its own device, here {device}; leave it out '
                "(ACCELERATE_USE_CPU=true takes the CPU)"
            )
        return str(device)
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return "cpu" if accelerator is None or accelerator.type == "mps" else str(accelerator)
    return name
