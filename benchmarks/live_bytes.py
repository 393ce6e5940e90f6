"""Counts the bytes of all tensors that are alive at once, to compare an estimate of memory with on any machine."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """``peak``: the most bytes that tensors made while the mode is on held at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {storage._cdata for storage in _storages((args, kwargs))}
        output = function(*args, **(kwargs or {}))
        for storage in _storages(output):
            if storage._cdata not in given and storage._cdata not in self.alive:
                self._add(storage)
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def _storages(tree: object) -> list[torch.UntypedStorage]:
    """Storages of the tensors in arguments or results; packed weights (oneDNN) have none."""
    tensors = [leaf for leaf in tree_leaves(tree) if torch.is_tensor(leaf)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]
