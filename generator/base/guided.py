"""GuidedBody: hidden states of positions given the codes before them, over a cache of what has been read."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
import torch.nn.functional as F

from wvq.generator.base.body import RotaryBody
from wvq.generator.base.cache import KeyValueCache, cache_shape
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.guidance import guide

Body = TypeVar("Body", bound=RotaryBody)


def guided_positions(scales: list[float], start: int) -> range:
    """Positions from ``start`` on between the first and the last one at which guidance is on."""
    on = [position for position, scale in enumerate(scales) if scale != 1 and position >= start]
    return range(on[0], on[-1] + 1) if on else range(0)


class GuidedBody(Generic[Body]):
    """Reads the positions of pictures with a generator's body, for samplers that go from position to position.

    A guided batch has two halves over one cache: with the condition, and with the null condition. While guidance is off
    only the conditional half runs; the other one catches up in one pass when guidance comes on.

    Args:
        model: in eval mode.
        condition: condition of the pictures.
        count: number of pictures B.
        scales: guidance scale at each of the T positions; 1 is off.
        start: first position whose hidden state will be needed.
        memory: of the cache of keys and values, of :func:`cache_shape`; new if None.
    """

    def __init__(
        self,
        model: Body,
        condition: Condition,
        count: int,
        scales: list[float],
        start: int = 0,
        memory: torch.Tensor | None = None,
    ):
        self.model, self.count = model, count
        self.on = on = guided_positions(scales, start)
        rows = 2 * count if on else count
        self.scales = torch.tensor(scales, device=model.device)[:, None]
        self.prefix = model.condition(condition.cat(condition.null()) if on else condition, rows)
        self.valid = self.prefix.valid
        if self.valid is not None:  # padded once to its full length: a mask is then a slice
            self.valid = F.pad(self.valid, (0, model.config.num_positions), value=True)
        if memory is None:
            memory = self.prefix.tokens.new_empty(cache_shape(model.config, rows))
        self.both = KeyValueCache(memory)
        self.conditional, self.unconditional = self.both.part(0, count), self.both.part(count, rows)

    def hidden(self, codes: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Hidden states that predict some positions in a row, from one pass over what is new.

        Args:
            codes: (B, T), or (B, T, G) of several codebooks, int64; those before ``start`` are final, those from there
                to ``end`` may be guesses.
            start: first position. What was read of guesses from here on is dropped.
            end: one after the last position.

        Returns:
            (B, end - start, D); (2 B, end - start, D), first with and then without the condition, where any of the
            positions is guided.
        """
        both, conditional, unconditional = self.both, self.conditional, self.unconditional
        for half in (conditional, unconditional):
            half.length = min(half.length, self.model.config.prefix_length + start - 1 if start else 0)
        if start >= self.on.stop or end <= self.on.start:
            return self._read(conditional, slice(0, self.count), codes, start, end)
        if unconditional.length < conditional.length:
            length = conditional.length - self.model.config.prefix_length
            self._read(unconditional, slice(self.count, None), codes, length, length + 1)
        both.length = conditional.length
        hidden = self._read(both, slice(None), codes, start, end)
        conditional.length = unconditional.length = both.length
        return hidden

    def guided(self, logits: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Logits (B, end - start, K), float32, of those at the hidden states of some positions: guided where they are.

        The result is a new tensor where ``logits`` is, which the caller may change.
        """
        logits = logits.float()
        return guide(logits, self.scales[start:end]) if len(logits) > self.count else logits

    def _read(self, cache: KeyValueCache, rows: slice, codes: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Hidden states (B, end - start, D) of these rows that predict the positions, by one pass over what is new."""
        x = self._new_tokens(cache, rows, codes[:, : end - 1])
        return self.model.run(x, None if self.valid is None else self.valid[rows], cache)[:, start - end :]

    def _new_tokens(self, cache: KeyValueCache, rows: slice, codes: torch.Tensor) -> torch.Tensor:
        """Input tokens (B, n, D) of what the cache of these rows lacks of prefix and codes (B, n, ...)."""
        tokens, bias = self.prefix.tokens[rows], self.prefix.bias
        new = codes[:, max(0, cache.length - self.model.config.prefix_length) :]
        if len(tokens) > len(new):
            new = torch.cat((new, new))
        x = self.model.embed_codes(new, None if bias is None else bias[rows])
        return torch.cat((tokens, x), 1) if cache.length == 0 else x
