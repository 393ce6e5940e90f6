"""Watches for what would make a processor wait for its GPU, on the `meta` device, where tensors have no values.

There, a number or a list of places that is read from a tensor is an error, as in ``item()``, ``bool()``, ``nonzero()``
or an index of bools. `no_waiting` adds what torch would do there without a word: numbers from a list, copies that
block, and operations that read or report a number, such as decompositions of matrices.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.syncs import REPORTING


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.name().removeprefix("aten::"), kwargs or {}
        result = func(*args, **kwargs)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        blocks = len(devices) > 1 and name in ("_to_copy", "copy_") and not (kwargs.get("non_blocking") or True in args)
        assert not blocks, f"{name} between {devices} waits for the device"
        assert not any(part in name for part in REPORTING), f"{name} waits for the device"
        return result


class _Lists(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        device = torch.device((kwargs or {}).get("device") or "cpu")
        lists = func in (torch.tensor, torch.as_tensor) and device.type != "cpu"
        assert not lists, "numbers from a list wait for the device"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_waiting():
    """Fail where the block, on the `meta` device, does what makes a processor wait for a GPU."""
    with _Watch(), _Lists():
        yield


def allow_meta(monkeypatch):
    """Make the `meta` device pass for one that has autocast, which it lacks."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
