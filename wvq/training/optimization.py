"""The optimiser of a module: its groups, the learning-rate schedule, clipping, and steps that are skipped."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from wvq.settings.train import TrainConfig
from wvq.training.sharding import full


def parameter_group(
    name: str,
    params: list[nn.Parameter],
    config: TrainConfig,
    *,
    weight_decay: float = 0.0,
    lr: float | None = None,
    scheduled: bool = False,
    betas: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """One group of an optimiser.

    Args:
        name: name of the group's learning rate in the log.
        params: the parameters.
        config: settings of the loop; learning rate and betas where none are given.
        weight_decay: AdamW's.
        lr: the group's own peak learning rate. Such a group is clipped alone, and stays at it if not ``scheduled``.
        scheduled: whether such a rate follows the schedule.
        betas: AdamW's.
    """
    peak = config.learning_rate if lr is None else lr
    return {
        "name": name,
        "params": params,
        "lr": peak,
        "peak_lr": peak,
        "weight_decay": weight_decay,
        "betas": betas or (config.beta1, config.beta2),
        "scheduled": scheduled or lr is None,
        "clip": "network" if lr is None else name,
    }


def network_groups(params: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Groups of a network: weight decay on parameters of two or more dims only."""
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    groups = [parameter_group("matrices", matrices, config, weight_decay=config.weight_decay)] if matrices else []
    return groups + ([parameter_group("vectors", vectors, config)] if vectors else [])


def build_optimizer(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW over the groups, fused: one kernel a step, which can leave a step out on the device."""
    return torch.optim.AdamW(groups, fused=True)


def learning_rate_factor(config: TrainConfig, progress: float, images_seen: int) -> float:
    """Share of the peak learning rate: linear warm-up by pictures, then the schedule.

    Args:
        config: its schedule, warm-up and batch size.
        progress: share of what comes after the warm-up that is over, in [0, 1].
        images_seen: pictures before this step.
    """
    warmup = min(1.0, (images_seen + config.batch_size) / config.warmup_images) if config.warmup_images else 1.0
    floor = config.final_learning_rate
    decay = {
        "constant": 1.0,
        "cosine": floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - (1 - floor) * progress,
    }[config.schedule]
    return warmup * decay


class ModuleOptimizer:
    """Steps the parameters of one module: by the schedule, clipped, and not at all if a gradient is not finite.

    Args:
        module: what trains, as Accelerate has prepared it.
        optimizer: over groups of :func:`parameter_group`. It is torch's own: Accelerate's wrapper would update the
            scaler, which all optimisers share, once for each of them, between unscaling and stepping.
        config: settings of the loop.
        skipped_name: name of the number of steps left out, in the log and in the result.

    Attributes:
        skipped: number of steps left out; 0-d, on the device.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, skipped_name: str):
        self.module, self.optimizer, self.config, self.skipped_name = module, optimizer, config, skipped_name
        self.skipped = torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)

    @property
    def has_gradients(self) -> bool:
        """Whether there is something to step by: a module that had no loss in this step has no gradients."""
        return any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"])

    def step(self, scaler: torch.amp.GradScaler | None, progress: float, images_seen: int) -> dict[str, torch.Tensor]:
        """Step by the gradients and drop them; never waits for a GPU.

        Args:
            scaler: what the losses were scaled by. The caller updates it when all optimisers have stepped.
            progress, images_seen: where the step begins; see :func:`learning_rate_factor`.

        Returns:
            The norms of the gradients before clipping, by their names in the log; 0-d, on the device.
        """
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        self._set_learning_rates(progress, images_seen)
        norms = self._clip()
        finite = torch.stack([torch.isfinite(norm) for norm in norms.values()]).all().float()
        self.skipped += 1 - finite
        if scaler is not None:
            scaler.step(self.optimizer)
        else:
            self.optimizer.found_inf = 1 - finite  # type: ignore[attr-defined]  # read by the fused kernel
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {f"gradient_norm_{name}": norm for name, norm in norms.items()}

    def _set_learning_rates(self, progress: float, images_seen: int) -> None:
        factor = learning_rate_factor(self.config, progress, images_seen)
        for group in self.optimizer.param_groups:
            if group["scheduled"]:
                group["lr"] = group["peak_lr"] * factor

    def _clip(self) -> dict[str, torch.Tensor]:
        """Clip the groups that share a clip name together (``clip_norm`` 0: measure only); their norms before that."""
        clipped: dict[str, list[nn.Parameter]] = {}
        for group in self.optimizer.param_groups:
            clipped.setdefault(group["clip"], []).extend(group["params"])
        bound = self.config.clip_norm or math.inf
        return {
            name: full(nn.utils.clip_grad_norm_(params, bound, foreach=True).detach())
            for name, params in clipped.items()
        }

    def learning_rates(self) -> dict[str, float]:
        """Learning rates of the last step, by their names in the log."""
        return {f"learning_rate_{group['name']}": group["lr"] for group in self.optimizer.param_groups}

    def skipped_steps(self) -> dict[str, int]:
        """The number of steps left out, by its name in the log and in the result; waits for a GPU."""
        return {self.skipped_name: int(self.skipped)}
