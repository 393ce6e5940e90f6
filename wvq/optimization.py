"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import math

from torch import nn

from wvq.recipes import TrainConfig


def parameter_group(
    name: str, params: list[nn.Parameter], config: TrainConfig, *, weight_decay: float = 0.0, lr: float | None = None
) -> dict:
    """One optimiser group; with a rate of its own it stays at it and is clipped alone, else it follows the schedule."""
    peak = config.learning_rate if lr is None else lr
    shared = {"name": name, "params": params, "lr": peak, "peak_lr": peak, "weight_decay": weight_decay}
    return shared | {"scheduled": lr is None, "clip": "network" if lr is None else name}


def network_groups(params: list[nn.Parameter], config: TrainConfig) -> list[dict]:
    """Groups of a network: weight decay on parameters of two or more dims only."""
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    groups = [parameter_group("matrices", matrices, config, weight_decay=config.weight_decay)]
    return groups + ([parameter_group("vectors", vectors, config)] if vectors else [])


def learning_rate_factor(config: TrainConfig, progress: float, images_seen: int) -> float:
    """Share of the peak learning rate: linear warm-up by pictures, then the schedule by progress in [0, 1]."""
    warmup = min(1.0, (images_seen + config.batch_size) / config.warmup_images) if config.warmup_images else 1.0
    floor = config.final_learning_rate
    decay = {
        "constant": 1.0,
        "cosine": floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - (1 - floor) * progress,
    }[config.schedule]
    return warmup * decay
