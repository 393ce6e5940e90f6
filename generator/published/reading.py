"""What the readers of all published generators share: the tokenizer that they need, sizes by name, and the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from wvq.errors import CheckpointError
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.interface import CodeGenerator, Quantizer
from wvq.models.key_map import Entry, read_weights

Generator = TypeVar("Generator", bound=CodeGenerator)


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


def filled(
    model_class: type[Generator],
    config: GeneratorConfig,
    state: MutableMapping[str, torch.Tensor],
    entries: Sequence[Entry],
    dropped: Sequence[str],
    source: str,
) -> Generator:
    """A model with the file's weights as float32, which are taken out of ``state`` one by one; buffers are zero.

    Args:
        model_class: of the model, which is made without memory first.
        config: of the model.
        state, entries, dropped, source: as of :func:`wvq.models.key_map.read_weights`.

    Raises:
        CheckpointError: weights that are missing, damaged, of other shapes or not known.
    """
    with torch.device("meta"):
        model = model_class(config)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    weights = read_weights(state, entries, dropped, shapes, source)
    for name in weights:  # one by one, so that memory holds few of them twice
        weights[name] = weights[name].float()
    weights |= {name: torch.zeros(buffer.shape, dtype=buffer.dtype) for name, buffer in model.named_buffers()}
    model.load_state_dict(weights, assign=True)
    return model.eval()
