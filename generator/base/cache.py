"""Preallocated keys and values of what a generator has read, written in place as it goes on.

Shapes: B pictures, S tokens, n new ones, H heads, C head size.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import torch

from wvq.generator.base.configuration import GeneratorConfig


class LayerCache(Protocol):
    """Keys and values of the tokens that one layer has read."""

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of new tokens (B, H, n, C); return those that the new tokens may see."""


@dataclass(frozen=True)
class FilledLayer:
    """The cache of a layer whose first ``length`` tokens are filled; memory: (2, B, H, S, C)."""

    memory: torch.Tensor
    length: int

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of new tokens (B, H, n, C); return those of all tokens so far."""
        end = self.length + keys.shape[2]
        stored = self.memory
        stored[0, :, :, self.length : end] = keys
        stored[1, :, :, self.length : end] = values
        return stored[0, :, :, :end], stored[1, :, :, :end]


class KeyValueCache:
    """Preallocated keys and values of every layer, written in place; ``length`` tokens are filled.

    Args:
        memory: (layers, 2, B, H, S, C), as :func:`cache_shape` says.
    """

    def __init__(self, memory: torch.Tensor):
        self.memory = memory
        self.length = 0

    def part(self, start: int, stop: int) -> KeyValueCache:
        """Those rows of the batch, in the same memory, with their own length."""
        part = copy.copy(self)
        part.memory = self.memory[:, :, start:stop]
        return part

    def layers(self) -> list[FilledLayer]:
        """The caches of the layers, for the next tokens."""
        return [FilledLayer(self.memory[layer], self.length) for layer in range(len(self.memory))]


def cache_shape(config: GeneratorConfig, batch_size: int) -> tuple[int, ...]:
    """Shape of the keys and values of all layers for whole pictures: (layers, 2, B, H, S, C)."""
    length = config.prefix_length + config.num_positions
    return config.num_layers, 2, batch_size, config.num_kv_heads, length, config.head_dim
