"""Optimisers, their groups, clipping, and the learning-rate schedule."""

from __future__ import annotations

import math

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
) -> dict:
    """One optimiser group; with a rate of its own it is clipped alone, and stays at it if not ``scheduled``."""
    peak = config.learning_rate if lr is None else lr
    shared = {"name": name, "params": params, "lr": peak, "peak_lr": peak, "weight_decay": weight_decay}
    return shared | {"scheduled": scheduled or lr is None, "clip": "network" if lr is None else name}


def network_groups(params: list[nn.Parameter], config: TrainConfig) -> list[dict]:
    """Groups of a network: weight decay on parameters of two or more dims only."""
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    groups = [parameter_group("matrices", matrices, config, weight_decay=config.weight_decay)] if matrices else []
    return groups + ([parameter_group("vectors", vectors, config)] if vectors else [])


def build_optimizer(groups: list[dict], lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over the groups, fused: one kernel a step, which skips a step on the device if it is told to."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, config: TrainConfig, progress: float, images_seen: int
) -> None:
    """Set the rate of each scheduled group for the step that begins at ``images_seen``; see `learning_rate_factor`."""
    factor = learning_rate_factor(config, progress, images_seen)
    for group in optimizer.param_groups:
        if group["scheduled"]:
            group["lr"] = group["peak_lr"] * factor


def clip_groups(optimizer: torch.optim.Optimizer, clip_norm: float) -> dict[str, torch.Tensor]:
    """Clip the gradients of the groups that share a clip name together (0: measure only).

    Returns:
        The gradient norm by clip name, before clipping; 0-d, on the device.
    """
    clipped: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        clipped.setdefault(group["clip"], []).extend(group["params"])
    return {
        name: full(nn.utils.clip_grad_norm_(params, clip_norm or math.inf, foreach=True).detach())
        for name, params in clipped.items()
    }


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
