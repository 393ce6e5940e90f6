"""Collectives that work the same with one process and with several."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from wvq.errors import WVQError

T = TypeVar("T")


def processes() -> PartialState:
    """The processes that run together, connected. Accelerate finds CPU processes only where ``cpu`` is set."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    if world_size() > 1:
        _patient_group()  # at once: a process that fails before its first wait would leave the others waiting for it
    return state


def leave_processes() -> None:
    """Wait for the others, then leave them, at the end of a command.

    A process that ends while its group is open may abort, and the launcher then ends those that are still at work.
    """
    if world_size() > 1:
        wait_for_all()
        _patient.clear()
        dist.destroy_process_group()


def drop_processes() -> None:
    """Close the CPU groups of this process without waiting for the others, after an error or a signal.

    An interpreter that ends while their threads are at work may abort, and its exit code would not show why it ended.
    """
    if world_size() > 1:
        groups = [group for group in (*_patient.values(), dist.group.WORLD) if dist.get_backend(group) == "gloo"]
        _patient.clear()
        for group in groups:
            dist.destroy_process_group(group)


_POLL = 0.02  # seconds between two checks of a wait: signals are handled in between
_patient: dict[Any, Any] = {}  # a group of CPU processes by the default group that it goes with


def _patient_group() -> Any:
    """The processes of the run over gloo, without a time limit: NCCL ends a collective after ten minutes."""
    world = dist.group.WORLD
    if world not in _patient:
        _patient.clear()
        _patient[world] = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    return _patient[world]


def wait_for_all() -> None:
    """Wait until every process has come here, however long one of them works; signals are handled meanwhile.

    Raises:
        RuntimeError: another process has ended (:func:`is_lost_process`).
    """
    if world_size() > 1:
        _finish(dist.barrier(_patient_group(), async_op=True))


def is_lost_process(error: BaseException) -> bool:
    """Whether a collective has failed since another process of the run has ended; that one says why."""
    return world_size() > 1 and isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


# Of gloo, NCCL and the store.
_LOST = re.compile("[Cc]onnection (was )?(closed|reset)|remote (worker|process)|Broken pipe|closed by peer")


def _finish(work: dist.Work) -> None:
    while not work.is_completed():
        time.sleep(_POLL)
    work.wait()  # raises what went wrong


def largest_later(values: list[float]) -> Callable[[], list[float]]:
    """Start to find the largest of each value over all processes; the function returned waits for the answer.

    Work goes on until then, on a GPU too.
    """
    if world_size() == 1:
        return lambda: values
    largest = torch.tensor(values, dtype=torch.float64)
    work = dist.all_reduce(largest, dist.ReduceOp.MAX, _patient_group(), async_op=True)

    def answer() -> list[float]:
        _finish(work)
        return largest.tolist()

    return answer


def decided_by_first_process(decide: Callable[[], T]) -> T:
    """Run ``decide`` in the main process alone, and return its value, which must be picklable, in every process.

    For decisions that depend on the disk: on a network file system processes may see different files for a while.

    Raises:
        WVQError, OSError: raised by ``decide``; in every process, so that none waits for one that has failed.
    """
    processes()  # they may not be connected yet
    if world_size() == 1:
        return decide()
    value = error = None
    if is_main_process():
        try:
            value = decide()
        except (WVQError, OSError) as problem:
            error = problem
    value, error = gather_objects((value, error))[0]
    if error is not None:
        raise error
    return value


def world_size() -> int:
    """Number of processes that run together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, summed in place over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows (N, ...) of all processes joined (W N, ...), detached; every process must bring as many."""
    tensor = tensor.detach().contiguous()
    if world_size() == 1:
        return tensor
    joined = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(joined, tensor)
    return joined


def from_first_process(tensor: torch.Tensor) -> torch.Tensor:
    """The main process's tensor on every process, written over the others' in place."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def gather_objects(value: Any) -> list[Any]:
    """The picklable value of each process, in order of rank; waits for the last one, however long it takes."""
    if world_size() == 1:
        return [value]
    wait_for_all()
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient_group())
    return values


def process_rank() -> int:
    """Rank of this process among those that run together."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the first of the processes that run together, also before they are connected.

    It is the one that prints, warns and writes what belongs to all.
    """
    if world_size() > 1:
        return process_rank() == 0
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over all processes, detached, as a new tensor."""
    return sum_over_processes(tensor.detach().clone()) / world_size()
