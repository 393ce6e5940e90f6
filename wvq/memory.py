"""How much memory is free: on a GPU, in the machine, and in the control groups that a process was put into."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from wvq.errors import ConfigError

GIB = 2**30
CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device; None where that is not known."""
    if device.type == "cuda":
        # PyTorch keeps what was freed: that part of what it has reserved can be taken again.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    return min([psutil.virtual_memory().available, *group_memory()])


def group_memory(own: Path = OWN_GROUPS, root: Path = CGROUPS) -> list[int]:
    """Bytes left in each control group with a limit, from the process's own up; containers and Slurm set such limits.

    Pages of files that the system only caches do not count as used.

    Args:
        own: the process's groups, as Linux lists them (``/proc/self/cgroup``).
        root: where the groups are mounted, of version 1 or 2.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return []
    left: list[int] = []
    tops: tuple[Path, ...]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2, which some systems mount beside version 1
            tops, names, prefix = (root, root / "unified"), ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):
            tops, names = (root / "memory",), ("memory.limit_in_bytes", "memory.usage_in_bytes")
            prefix = "total_"  # with the groups below, as the usage is
        else:
            continue
        for top in tops:
            group = top / path.lstrip("/")
            # Within a container the path can be that of the host: what is mounted is the group itself.
            for folder in (group, *group.parents):
                if top in (folder, *folder.parents):
                    left += _left(folder, *names, prefix)
    return left


def _left(group: Path, limit: str, usage: str, prefix: str) -> list[int]:
    """Bytes left in one group; none if it has no limit."""
    try:
        highest, taken = (group / limit).read_text(), int((group / usage).read_text())
        rows = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        statistics = {name: int(value) for name, value in rows}
        files = sum(statistics.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        return [] if highest.strip() == "max" else [max(0, int(highest) - max(0, taken - files))]
    except (OSError, ValueError):  # the top has no such files; some kernels leave one out
        return []


def require_memory(needed: int, device: torch.device, task: str, remedy: str) -> None:
    """Refuse work that does not fit into the memory of a device.

    Args:
        needed: bytes.
        device: where.
        task: the work, for the message.
        remedy: what to change, for the message.

    Raises:
        ConfigError: more is needed than is free.
    """
    free = available_memory(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"{task} needs about {needed / GIB:.1f} GiB of memory where {free / GIB:.1f} GiB are free; {remedy}"
        )
