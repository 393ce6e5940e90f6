"""The moving average of a model's weights, which is what a run evaluates and keeps."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def average_decay(decay: float, updates: int) -> float:
    """The decay of an update, which grows from 0 to ``decay`` over the first ones."""
    return min(decay, (1 + updates) / (10 + updates))


class ExponentialAverage(Generic[Model]):
    """Exponential moving average of the parameters; buffers are copied. The decay grows from 0 over the first steps."""

    def __init__(self, model: Model, decay: float):
        self.model: Model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move towards the model's weights after one of its steps."""
        decay = average_decay(self.decay, self.updates)
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The state of an exact resume."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` gave."""
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
