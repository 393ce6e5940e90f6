"""GuidedDecoder: guided logits of codes given those before them, over a cache of what has been read."""

from __future__ import annotations

import torch

from wvq.generator.base.guided import GuidedBody
from wvq.generator.next_code.modeling import ImageCodeTransformer


class GuidedDecoder(GuidedBody[ImageCodeTransformer]):
    """Gives the logits of the next codes, for the samplers of one code and of several codes a pass."""

    def logits(self, codes: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Guided logits (B, end - start, K) of some positions in a row, float32, which the caller may change.

        Arguments are those of :meth:`GuidedBody.hidden`.
        """
        return self.guided(self.model.logits(self.hidden(codes, start, end)), start, end)
