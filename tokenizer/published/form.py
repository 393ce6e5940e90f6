"""What a published tokenizer's file is like: how it calls the parts of the network, and what its shapes do not say.

The projects share one network, that of taming-transformers (Esser et al. 2021), under names of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

F16 = (1, 1, 2, 2, 4)  # multipliers of a network with 16 x 16 pixels a code


class Sizes(NamedTuple):
    """Sizes of a published model, which the shapes of its weights say."""

    base_channels: int
    channel_multipliers: tuple[float, ...]
    num_res_blocks: int
    latent_channels: int
    code_dim: int
    num_codes: int


def unchanged(name: str) -> str:
    """A name as it is."""
    return name


@dataclass(frozen=True)
class TokenizerForm:
    """The form of a tokenizer's file.

    Attributes:
        levels: what the levels of the encoder and those of the decoder are called.
        block: what the residual blocks of a level are called.
        middle: what the parts of the middle are called: block, attention, block.
        rising: whether the decoder counts its levels from the highest resolution, and runs from the last to the first.
        fused_qkv: whether one convolution gives queries, keys and values.
        codebook: name of the codebook.
        scale_convs: beginning of the names of the convolutions that scales share; there is one scale if None.
        residual_projector: beginning of the names of its convolutions; there is none if None.
        fields: fields of the config that no shape says.
        dropped: patterns (regular expressions of whole names) of weights that are left out on purpose.
        rename: gives the name in the file for one made of the above.
        published: image sizes in pixels by the sizes of published models.
        published_scales: sides of the scales of published models, by the side of the grid of codes.
    """

    levels: tuple[str, str] = ("down", "up")
    block: str = "block"
    middle: tuple[str, str, str] = ("mid.block_1", "mid.attn_1", "mid.block_2")
    rising: bool = True
    fused_qkv: bool = False
    codebook: str = "quantize.embedding.weight"
    scale_convs: str | None = None
    residual_projector: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    rename: Callable[[str], str] = unchanged
    published: Mapping[Sizes, int] = field(default_factory=dict)
    published_scales: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def level(self, part: str, index: int, count: int) -> str:
        """Name of a level.

        Args:
            part: ``encoder`` or ``decoder``.
            index: number of the level in the order in which they run.
            count: levels.
        """
        if part == "encoder":
            return f"encoder.{self.levels[0]}.{index}"
        return f"decoder.{self.levels[1]}.{count - 1 - index if self.rising else index}"

    def conv_name(self, index: int) -> str:
        """Name of a convolution that scales share."""
        return f"{self.scale_convs}.{index}"
