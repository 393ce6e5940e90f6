"""A step of sampling as one function of tensors of fixed shapes, so that a GPU can record and replay it.

The position is a tensor, keys and values of all positions have their place from the start, and nothing that Python does
depends on either. It computes what :class:`~wvq.generator.next_code.decoder.GuidedDecoder` and the plain loop do.
Shapes: B pictures, R rows (2 B where guidance is on somewhere, else B), S tokens, T codes, K codes of the codebook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wvq.generator.base.filters import FREE, draw
from wvq.generator.base.guidance import guide
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.modeling import ImageCodeTransformer


@dataclass
class StepState:
    """What a step reads and writes, at the same addresses each time.

    Attributes:
        codes: (B, T) int64, drawn so far.
        given: (B, T) int64, codes that are given, -1 where they are drawn.
        uniform: (B, T) numbers in [0, 1), one a draw.
        scales: (T,) guidance scale at each position.
        position: (1,) int64, the position that is next.
        memory: (layers, 2, R, H, S, C) keys and values.
        valid: (R, S) bool, False for the padding of texts; None for a model without text.
        bias: (R, 1, D) of the conditions; None for a model without.
        rotary: cos and sin (S, C/2) of all tokens.
    """

    codes: torch.Tensor
    given: torch.Tensor
    uniform: torch.Tensor
    scales: torch.Tensor
    position: torch.Tensor
    memory: torch.Tensor
    valid: torch.Tensor | None
    bias: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def new(cls, model: ImageCodeTransformer, count: int, memory: torch.Tensor) -> StepState:
        """A state of ``count`` pictures over a cache whose values are finite."""
        config, device, rows = model.config, model.device, memory.shape[2]
        length = config.sequence_length
        return cls(
            codes=torch.zeros(count, length, dtype=torch.int64, device=device),
            given=torch.full((count, length), FREE, device=device),
            uniform=torch.zeros(count, length, device=device),
            scales=torch.ones(length, device=device),
            position=torch.ones(1, dtype=torch.int64, device=device),
            memory=memory,
            valid=torch.ones(rows, memory.shape[4], dtype=torch.bool, device=device) if config.text_dim else None,
            bias=memory.new_zeros(rows, 1, config.hidden_size) if config.condition_bias else None,
            rotary=model.rotary_tables(device),
        )

    def clear(self) -> None:
        """Make it fit for a step of no meaning at position 1."""
        self.codes.zero_()
        self.position.fill_(1)


@dataclass(frozen=True)
class FixedLayer:
    """The cache of a layer that new tokens are written into at ``tokens`` (n,); memory: (2, R, H, S, C)."""

    memory: torch.Tensor
    tokens: torch.Tensor

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of new tokens; return those of all places, for a mask to choose from."""
        self.memory[0].index_copy_(2, self.tokens, keys)
        self.memory[1].index_copy_(2, self.tokens, values)
        return self.memory[0], self.memory[1]


class Step:
    """A pass over the ``size`` codes ahead of and from the position on, by the model's own layers.

    Args:
        model: in eval mode.
        state: its tensors.
        guided: whether the half without the condition runs too.
        size: codes that are read; those after the first are guesses.
    """

    def __init__(self, model: ImageCodeTransformer, state: StepState, guided: bool, size: int = 1):
        self.model, self.state, self.guided, self.size = model, state, guided, size
        self.rows = state.memory.shape[2] if guided else len(state.codes)

    @torch.inference_mode()
    def guess(self) -> torch.Tensor:
        """Guided logits (B, size, K) of the positions from the next one on, in float32."""
        logits = self._logits().float()
        if not self.guided:
            return logits
        return guide(logits, self.state.scales.index_select(0, self._places() + 1)[:, None])

    @torch.inference_mode()
    def draw(self, settings: SamplingSettings) -> None:
        """Draw the codes of the next position, write them, and go one position on."""
        state, position = self.state, self.state.position
        drawn = draw(self.guess()[:, 0], state.uniform.index_select(1, position)[:, 0], settings)[:, None]
        given = state.given.index_select(1, position)
        state.codes.index_copy_(1, position, torch.where(given == FREE, drawn, given))
        position.add_(1)

    def _logits(self) -> torch.Tensor:
        """Logits (rows, size, K) after the codes that are read."""
        model, state, places = self.model, self.state, self._places()
        codes = state.codes.index_select(1, places)
        if self.guided:
            codes = codes.repeat(2, 1)
        x = model.embed_codes(codes, None if state.bias is None else state.bias[: self.rows])
        if model.config.target_positions:
            x = x + model.target_embedding(places + 1)
        tokens = places + model.config.prefix_length
        cos, sin = (part.index_select(0, tokens) for part in state.rotary)
        mask = torch.arange(state.memory.shape[4], device=tokens.device) <= tokens[:, None]
        if state.valid is not None:
            mask = mask & state.valid[: self.rows, None, None]
        return model.logits(self._run_blocks(x, cos, sin, mask, tokens))

    def _run_blocks(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        memories = self.state.memory[:, :, : self.rows]
        caches = [FixedLayer(memories[layer], tokens) for layer in range(len(memories))]
        return self.model.run_blocks(x, cos, sin, mask, caches)

    def _places(self) -> torch.Tensor:
        """Positions (size,) of the codes that are read."""
        return self.state.position + torch.arange(-1, self.size - 1, device=self.state.position.device)


class CompiledStep(Step):
    """A step whose layers are compiled by Inductor, one graph for all of them."""

    def _run_blocks(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        memories = self.state.memory[:, :, : self.rows]
        for block, memory in zip(self.model.blocks, memories, strict=True):
            x = _compiled_block()(block, x, cos, sin, mask, memory, tokens)
        return self.model.norm(x)


def _run_block(
    block: torch.nn.Module,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: torch.Tensor,
    memory: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    return block(x, cos, sin, mask, FixedLayer(memory, tokens))


@functools.cache
def _compiled_block() -> Callable[..., torch.Tensor]:
    return torch.compile(_run_block, dynamic=False, fullgraph=True)
