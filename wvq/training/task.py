"""The interface between a stage and the training loop, and the means of what its steps log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from wvq.distributed import gather_objects, process_rank, world_size
from wvq.interruption import StopRequest
from wvq.training.averaging import Model

Batch = dict[str, Any]  # tensors by name, and texts as lists


@dataclass
class StepLoss:
    """Loss and figures of one batch.

    Attributes:
        loss: mean over the batch; 0-d.
        terms: detached 0-d figures by name, for the log.
        adversary_loss: gives loss and terms of the adversary for the same batch, from the (wrapped) adversary; None
            while it does not train.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    adversary_loss: Callable[[nn.Module], tuple[torch.Tensor, dict[str, torch.Tensor]]] | None = None


class Task(Generic[Model]):
    """A stage's side of the training loop: the loss of its model, and how the model is measured, shown and saved.

    Attributes:
        name: shown beside the progress bar.
        adversary: a module that trains against the model, with its own optimiser; None for none.
        stop: set by the loop; a long pass over data goes through ``stop.until_set``, so that a signal ends it.
    """

    name: str
    adversary: nn.Module | None = None
    stop = StopRequest()

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """Optimiser groups, made by :func:`wvq.training.optimization.parameter_group`."""
        raise NotImplementedError

    def adversary_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the adversary."""
        raise NotImplementedError

    def compiled_parts(self, model: Model) -> list[nn.Module]:
        """Modules that torch.compile makes faster, each as a whole."""
        return [model]

    def begin_step(self, model: Model, parts: int) -> None:
        """Prepare for a step: what moves without a gradient moves once a step, over all its batches.

        Args:
            model: the model itself, behind wrappers.
            parts: batches that :meth:`loss` is called with in this step.
        """

    def loss(self, model: nn.Module, batch: Batch, images_seen: int, progress: float) -> StepLoss:
        """Compute the loss of a batch.

        Args:
            model: may be wrapped. Call its forward only: a method of the wrapped module would skip the averaging of
                gradients over processes.
            batch: on the device.
            images_seen: training pictures before the step.
            progress: share of the run that is over, by pictures or by clock, whichever is further; in [0, 1].
        """
        raise NotImplementedError

    def report(self, accelerator: Accelerator, images_seen: int) -> tuple[dict[str, float], str | None]:
        """Figures for a log line beside the means of the terms, and a warning for the user, if there is one."""
        return {}, None

    def evaluate(self, model: Model, accelerator: Accelerator) -> dict[str, Any]:
        """Held-out figures, the same on every process."""
        raise NotImplementedError

    def picture(self, model: Model) -> Image.Image:
        """A sheet that shows what the model can do."""
        raise NotImplementedError

    def save(self, model: Model, folder: Path) -> None:
        """Write the trained model, as its ``from_pretrained`` reads it."""
        raise NotImplementedError

    def training_state(self, model: Model) -> dict[str, Any]:
        """State that an exact resume needs beside weights and optimisers."""
        return {}

    def load_training_state(self, model: Model, state: dict[str, Any], device: torch.device) -> None:
        """Restore the state that :meth:`training_state` gave."""


class RunningMeans:
    """Means of detached figures between two log lines; read out once, so that the loop never waits for a GPU."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, figures: dict[str, torch.Tensor]) -> None:
        """Add the figures of one step, 0-d each."""
        for name, value in figures.items():  # some figures belong to some steps only
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the steps and processes since the last call."""
        values = torch.stack([value.float() / self.counts[name] for name, value in self.sums.items()])
        means = dict(zip(self.sums, accelerator.reduce(values, "mean").tolist(), strict=True))
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The state of an exact resume. All processes call it together."""
        return {"sums": gather_objects({name: value.cpu() for name, value in self.sums.items()}), "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the state that :meth:`state_dict` gave; on another number of processes each takes the mean."""
        sums, self.counts = state["sums"], dict(state["counts"])
        if len(sums) == world_size():
            own = sums[process_rank()]
        else:
            own = {name: torch.stack([one[name] for one in sums]).mean(0) for name in self.counts}
        self.sums = {name: value.to(device) for name, value in own.items()}
