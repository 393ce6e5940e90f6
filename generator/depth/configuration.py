"""DepthTransformerConfig: the generator of product codes, several codebooks a position."""

from __future__ import annotations

import math
from typing import Any

from wvq.checks import Checker, at_most, integer, one_of, or_null
from wvq.data.layout import make_layout
from wvq.generator.base.configuration import RotaryConfig
from wvq.models.config import option

DEPTH_HEADS = ("transformer", "parallel")
HEADS = ("zero", "normal")


class DepthTransformerConfig(RotaryConfig):
    """Configuration of a :class:`DepthTransformer`.

    Args:
        num_groups: codebooks G of the tokenizer; each position has a code of each.
        depth_head: ``transformer``: the codes of a position are drawn one after the other, each given those before it,
            by a small transformer over depth (RQ-Transformer); ``parallel``: each from a classifier of its own on the
            output of the body, all at once, as if they were independent of each other given the earlier positions.
        depth_layers: layers over depth, which sampling runs G times a position. RQ-Transformer has 4 for 4 codebooks;
            the default is 2, for 2.
        depth_hidden_size, depth_heads: width and attention heads over depth; those of the body if None.
        head: the classifiers: ``zero`` starts at zero, so that the first loss is ln K; ``normal`` starts like the other
            weights.
        num_codes: size K of one codebook.
        code_dim: dims D over all codebooks; the embeddings and logits of a codebook see its own D / G.
        size, ...: those of :class:`RotaryConfig`; ``drop_path`` is of the body alone.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "depth_transformer"

    num_groups: int = option(2, integer(2))
    depth_head: str = option("transformer", one_of(DEPTH_HEADS))
    depth_layers: int = option(2, integer(), at_most(10_000))
    depth_hidden_size: int = option(None, or_null(integer()))
    depth_heads: int = option(None, or_null(integer()))
    head: str = option("zero", one_of(HEADS), identity=False)

    def complete(self, check: Checker) -> None:
        super().complete(check)
        if self.depth_hidden_size is None:
            self.depth_hidden_size = self.hidden_size
        if self.depth_heads is None:
            self.depth_heads = self.num_heads
        heads = "a divisor of depth_hidden_size with a head size that is a multiple of 4"
        check("depth_heads", heads, lambda count: self.depth_hidden_size % (4 * count) == 0)
        check("code_dim", f"a multiple of num_groups, {self.num_groups}", lambda dims: dims % self.num_groups == 0)

    @classmethod
    def fields_of_tokenizer(cls, tokenizer: Any) -> dict[str, Any]:
        return {"num_groups": tokenizer.num_groups}

    @property
    def depth(self) -> RotaryConfig:
        """Sizes of the transformer over depth."""
        return RotaryConfig(
            hidden_size=self.depth_hidden_size,
            num_layers=self.depth_layers,
            num_heads=self.depth_heads,
            grid=[1, self.num_groups],
            dropout=self.dropout,
            feed_forward_dropout=self.feed_forward_dropout,
            norm_eps=self.norm_eps,
            qk_norm=self.qk_norm,
            rope_theta=self.rope_theta,
        )

    @property
    def codebook_dim(self) -> int:
        """Dims of the code vectors of one codebook; 0 where the model does not see them."""
        return self.code_dim // self.num_groups

    @property
    def code_layout(self) -> dict:
        return make_layout((self.grid[0], self.grid[1]), self.num_groups)

    @property
    def num_positions(self) -> int:
        return math.prod(self.grid)
