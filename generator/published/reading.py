"""What the readers of all published generators share: the tokenizer that they need, and sizes by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from wvq.errors import CheckpointError
from wvq.generator.base.interface import Quantizer


class TokenizerSizes(Protocol):
    """The config of a tokenizer, as far as a generator of its codes follows it."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""

    @property
    def scales(self) -> list[int] | None:
        """Sides of the maps of multi-scale codes."""


class Tokenizer(Protocol):
    """The tokenizer of a published generator; a protocol, since no stage imports the other."""

    @property
    def config(self) -> TokenizerSizes:
        """Its sizes."""

    @property
    def quantizer(self) -> Quantizer:
        """Its codebook."""

    def codes_hash(self) -> str:
        """What identifies its codes."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of the weights of a file, which a config is made from; the weights may have no memory.

    Attributes:
        state: the weights by name.
        source: the file, for errors.
        family: whose generator it should be, for errors.
    """

    state: Mapping[str, torch.Tensor]
    source: str
    family: str

    def of(self, name: str, dims: int = 2) -> tuple[int, ...]:
        """The shape of a weight with so many dims.

        Raises:
            CheckpointError: there is no such weight, or it is empty.
        """
        if name not in self.state or self.state[name].dim() != dims or not self.state[name].numel():
            raise CheckpointError(
                f"{self.source} lacks the weight {name} of {dims} dims; it is damaged, or no generator of {self.family}"
            )
        return tuple(self.state[name].shape)

    def layers(self, prefix: str) -> int:
        """Number of the layers whose weights are named by the prefix and a number.

        Raises:
            CheckpointError: there are none.
        """
        pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
        numbers = {match[1] for name in self.state if (match := pattern.match(name))}
        if not numbers:
            raise CheckpointError(
                f"{self.source} holds no layers ({prefix}.0); it is damaged, or no generator of {self.family}"
            )
        return len(numbers)
