"""Guided logits of one position after the other, over a cache of keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wvq.generator.conditioning import Condition, Prefix
from wvq.generator.guidance import guide
from wvq.generator.modeling import ImageCodeTransformer, KeyValueCache


def begin(
    model: ImageCodeTransformer, condition: Condition, count: int, guided: bool
) -> tuple[Prefix, torch.Tensor | None, KeyValueCache]:
    """Prefix, mask of real tokens and empty cache of ``count`` pictures, followed by their null halves if guided."""
    rows = 2 * count if guided else count
    prefix = model.condition(condition.cat(condition.null()) if guided else condition, rows)
    valid = prefix.valid
    if valid is not None:  # padded once to its full length: a mask is then a slice
        valid = F.pad(valid, (0, model.config.sequence_length), value=True)
    return prefix, valid, KeyValueCache(model.config, rows, prefix.tokens)


class Halves:
    """The halves of a guided batch, with and without the condition, over one cache.

    While guidance is off only the conditional half runs; the other one catches up in one pass when it comes on.

    Args:
        model: the generator.
        condition: of ``count`` pictures.
        scales: guidance scale at each position.
        start: first position whose logits will be wanted.
    """

    def __init__(self, model: ImageCodeTransformer, condition: Condition, count: int, scales: list[float], start: int):
        on = [position for position, scale in enumerate(scales) if scale != 1 and position >= start]
        self.model, self.count, self.scales = model, count, scales
        self.on = range(on[0], on[-1] + 1) if on else range(0)
        self.prefix, self.valid, self.whole = begin(model, condition, count, guided=bool(on))
        self.conditional, self.unconditional = self.whole.part(0, count), self.whole.part(count, 2 * count)

    def logits(self, codes: torch.Tensor, position: int) -> torch.Tensor:
        """Guided float32 logits (B, K) of a position, given codes (B, T) of which those before it are known.

        Positions are asked for in order.
        """
        if position not in self.on:
            return self._run(self.conditional, slice(0, self.count), codes[:, :position])
        if self.unconditional.length < self.conditional.length:
            seen = codes[:, : self.conditional.length - self.model.config.prefix_length]
            self._run(self.unconditional, slice(self.count, None), seen)
        self.whole.length = self.conditional.length
        known = codes[:, :position]
        logits = self._run(self.whole, slice(None), torch.cat((known, known)))
        self.conditional.length = self.unconditional.length = self.whole.length
        return guide(logits, self.scales[position])

    def _run(self, cache: KeyValueCache, rows: slice, known: torch.Tensor) -> torch.Tensor:
        """Run what the cache of these rows lacks of prefix and known codes; logits of the position after them."""
        seen = max(0, cache.length - self.model.config.prefix_length)
        bias = self.prefix.bias
        x = self.model.embed_codes(known[:, seen:], None if bias is None else bias[rows])
        if cache.length == 0:
            x = torch.cat((self.prefix.tokens[rows], x), 1)
        valid = None if self.valid is None else self.valid[rows]
        return self.model.logits(self.model.run(x, valid, cache)[:, -1]).float()
