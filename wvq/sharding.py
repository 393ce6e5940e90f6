"""Sharded training (FSDP2): weights that are spread over the processes, gathered where a whole model is needed."""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from wvq.averaging import average_decay


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor; all processes call it, as it is gathered from them if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class ShardedModel:
    """A sharded model's weights, or their moving average, and a whole copy of the model to evaluate and save.

    Args:
        whole: an unsharded copy of the model; lies on the CPU between its uses.
        sharded: the model that trains.
        decay: of the moving average; 0 for the weights themselves.
        device: where the whole model is used.
    """

    def __init__(self, whole: nn.Module, sharded: nn.Module, decay: float, device: torch.device):
        self.whole, self.sharded, self.decay, self.device = whole.requires_grad_(False).eval(), sharded, decay, device
        self.updates = 0
        self.shards = [p.detach().clone() for p in sharded.parameters()] if decay else list(sharded.parameters())

    @property
    def model(self) -> nn.Module:
        """The whole model, in eval mode on the device; all processes ask for it together."""
        self.whole.to(self.device)
        with torch.no_grad():
            for target, shard in zip(self.whole.parameters(), self.shards, strict=True):
                target.copy_(full(shard.detach()))
            for target, buffer in zip(self.whole.buffers(), self.sharded.buffers(), strict=True):
                target.copy_(full(buffer))
        return self.whole

    def release(self) -> None:
        """Give the device's memory of the whole model back."""
        self.whole.cpu()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights after one of its steps."""
        if not self.decay:
            return
        torch._foreach_lerp_(self.shards, list(model.parameters()), 1 - average_decay(self.decay, self.updates))
        self.updates += 1

    def state_dict(self) -> dict:
        """The state of an exact resume. All processes ask together."""
        state = {"updates": self.updates, "model": None}
        if self.decay:
            state["model"] = {name: value.cpu() for name, value in self.model.state_dict().items()}
            self.release()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Take up the state that :meth:`state_dict` gave."""
        self.updates = state["updates"]
        if state["model"] is None:
            return
        self.whole.load_state_dict(state["model"])
        for shard, value in zip(self.shards, self.whole.parameters(), strict=True):
            value = value.to(shard.device)
            if isinstance(shard, DTensor):
                value = distribute_tensor(value, shard.device_mesh, shard.placements)
            shard.copy_(value)


def whole_copy(model: nn.Module, accelerator: Accelerator) -> nn.Module | None:
    """A copy of a model that is about to be sharded; None if it is not."""
    return copy.deepcopy(model) if accelerator.is_fsdp2 else None
