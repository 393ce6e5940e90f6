"""Sharded training (FSDP2): weights that are spread over the processes, gathered where a whole model is needed."""

from __future__ import annotations

import copy
from typing import Any, Generic

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from wvq.distributed import is_main_process
from wvq.training.averaging import Model, average_decay


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, gathered from all processes if it is sharded; all call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def skeleton(model: Model) -> Model:
    """A copy of a model without its values: parameters and buffers are on the meta device and take no memory."""
    parameters = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    buffers = {id(b): b.detach().to("meta") for b in model.buffers()}
    return copy.deepcopy(model, parameters | buffers)  # deepcopy takes what the memo holds instead of making a copy


class ShardedModel(Generic[Model]):
    """A sharded model's weights, or their moving average, and the whole model that is put together of them.

    No process keeps a whole copy. To be evaluated it is gathered on each device, and freed when the caller drops it;
    to be saved, or as part of a checkpoint, it is gathered tensor by tensor in the main process's memory.

    Args:
        structure: :func:`skeleton` of the model before it was sharded.
        sharded: the model that trains.
        decay: decay of the moving average; 0 for the weights themselves.
        device: where the whole model is used.
    """

    def __init__(self, structure: Model, sharded: Model, decay: float, device: torch.device):
        self.structure, self.sharded, self.decay, self.device = structure.eval(), sharded, decay, device
        self.updates = 0
        self.shards: list[torch.Tensor] = list(sharded.parameters())
        if decay:
            self.shards = [p.detach().clone() for p in self.shards]

    @property
    def model(self) -> Model:
        """The whole model, new each time, in eval mode on each device; all processes request it together."""
        return self._put_together(self._gathered(self.device, everywhere=True))

    @property
    def model_of_main_process(self) -> Model | None:
        """The whole model on the CPU of the main process, None in the others; all processes request it together."""
        gathered = self._gathered(torch.device("cpu"), everywhere=False)
        return self._put_together(gathered) if is_main_process() else None

    def _put_together(self, tensors: dict[int, torch.Tensor]) -> Model:
        parameters = {id(p) for p in self.structure.parameters()}
        memo = {key: nn.Parameter(t, False) if key in parameters else t for key, t in tensors.items()}
        return copy.deepcopy(self.structure, memo)

    @torch.no_grad()
    def _gathered(self, device: torch.device, everywhere: bool) -> dict[int, torch.Tensor]:
        """Whole tensors by the id of their place in the structure; none in other processes if not ``everywhere``."""
        places = [*self.structure.parameters(), *self.structure.buffers()]
        sources = [*self.shards, *self.sharded.buffers()]
        gathered = {}
        for place, source in zip(places, sources, strict=True):
            tensor = full(source.detach())
            if everywhere or is_main_process():
                gathered[id(place)] = tensor.to(device, copy=not isinstance(source, DTensor))
        return gathered

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move the average towards the model's weights after one of its steps."""
        if not self.decay:
            return
        torch._foreach_lerp_(self.shards, list(model.parameters()), 1 - average_decay(self.decay, self.updates))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The state of an exact resume, whole in the main process. All processes call it together."""
        model = self.model_of_main_process if self.decay else None
        return {"updates": self.updates, "model": None if model is None else model.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` gave; what the main process reads goes to all."""
        self.updates = state["updates"]
        if not self.decay or state["model"] is None:
            return
        names = {id(place): name for name, place in self.structure.state_dict(keep_vars=True).items()}
        for place, shard in zip(self.structure.parameters(), self.shards, strict=True):
            value = state["model"][names[id(place)]]
            if isinstance(shard, DTensor):
                if not is_main_process():
                    value = torch.empty(place.shape, dtype=place.dtype)
                value = distribute_tensor(value.to(self.device), shard.device_mesh, shard.placements)
            shard.copy_(value)
