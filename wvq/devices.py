"""The device that a command runs on."""

from __future__ import annotations

import os

import torch

from wvq.distributed import processes
from wvq.errors import ConfigError, first_line


def usable_device(name: str | None = None) -> str:
    """The device to use: the one of that name, or the best available for None.

    Raises:
        ConfigError: it cannot be used here.
    """
    if name is not None:
        try:
            device_asked = torch.device(name)
            torch.ones(1, device=device_asked).item()  # of "meta", which torch also knows, there are no values
        except (RuntimeError, AssertionError, ImportError) as error:
            raise ConfigError(f'device "{name}" cannot be used here ({first_line(error)})') from error
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
