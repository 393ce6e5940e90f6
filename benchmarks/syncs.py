"""Counts what makes the processor wait for its GPU, in code that runs: on a GPU by torch, on the CPU by name.

`tests/waiting.py` looks at single parts on the `meta` device, where tensors have no values; this one at whole steps.
"""

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
# Parts of the names of operations: their results have a shape that depends on values, or they report to the processor
# whether they succeeded, or they read the number that they fill in (as the gradient of `trace()` does).
REPORTING = ("unique", "bincount", "linalg_eig", "linalg_svd", "linalg_cholesky", "linalg_inv", "linalg_solve")
REPORTING += ("index_fill.int_Tensor", "index_fill_.int_Tensor")
# Beginnings of the names of those that the `meta` device refuses by itself.
READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "repeat_interleave.Tensor")
INDEXING = ("index.Tensor", "index_put", "_index_put", "_unsafe_index")
COPYING = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)


def _place() -> str:
    """The innermost line of this project that is being run."""
    own = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT)]
    lines = [frame for frame in own if frame.filename != __file__ and ".venv" not in frame.filename]
    return f"{Path(lines[-1].filename).relative_to(ROOT)}:{lines[-1].lineno}" if lines else "?"


class _Operations(TorchDispatchMode):
    def __init__(self, places: list[str]):
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        reads = name.startswith(READING) or any(part in name for part in REPORTING)
        if name.startswith(INDEXING):  # by a mask: the number of its ones is needed
            reads = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if reads:
            self.places.append(f"{name} at {_place()}")
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, places: list[str]):
        super().__init__()
        self.places = places

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPYING:
            self.places.append(f"{func.__name__} at {_place()}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counting_syncs(device: torch.device | str) -> Iterator[list[str]]:
    """Lists what waits, or would wait, for the device in the block; a list that is empty is good news.

    Args:
        device: a CUDA device, where torch warns of each wait; or the CPU, where operations that would wait on a GPU are
            recognised by their names, whether or not their tensors would lie there.
    """
    places: list[str] = []
    if torch.device(device).type != "cuda":
        with _Operations(places), _Copies(places):
            yield places
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
    places += [f"{w.message} at {w.filename}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]
