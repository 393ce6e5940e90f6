"""NextScaleTransformerConfig: the generator of multi-scale codes."""

from __future__ import annotations

from typing import Any

from wvq.checks import FLAG, Checker, integer, interval, one_of
from wvq.data.layout import make_layout
from wvq.generator.base.configuration import GeneratorConfig
from wvq.models.config import option
from wvq.models.scale_maps import CONV_TABLES, RISING, SCALES, shared_convs

CONDITIONINGS = ("adaptive", "adaptive_shared", "prefix")
NORMS = ("rms", "layer")
FEED_FORWARDS = ("swiglu", "gelu")
QK_NORMS = ("none", "rms", "l2")


class NextScaleTransformerConfig(GeneratorConfig):
    """Configuration of a :class:`NextScaleTransformer`.

    Args:
        num_codes: codebook size K of the tokenizer.
        scales: sides of the maps, rising up to the grid's; of a grid that is not square, the shorter sides.
        code_dim: dims D of the tokenizer's code vectors, of which the inputs are made.
        num_scale_convs, scale_conv_ratio, scale_conv_table: the tokenizer's, see
            :class:`wvq.tokenizer.quantizers.multiscale.MultiScaleConfig`.
        conditioning: ``adaptive``: the condition as one vector, from which each layer makes shifts, scales and gates
            of its norms and branches, and which is the first input; ``adaptive_shared``: one such layer for all, to
            which each adds its own; ``prefix``: tokens ahead of the codes, as in an ``ImageCodeTransformer``.
        norm: ``rms`` or ``layer``.
        feed_forward: ``swiglu``, or ``gelu`` (by tanh) with biases, which is four times as wide as the model where no
            ``intermediate_size`` is given.
        qk_norm: of queries and keys of each head: ``none``, ``rms``, or ``l2`` with a trained scale a head.
        attention_bias: biases of queries, values and the output of attention, and of the head.
        size, ...: those of :class:`GeneratorConfig`; ``condition_bias``, and
            ``text_projection`` and ``null_text`` of other values than the default, with ``prefix`` alone.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "next_scale_transformer"

    num_codes: int = option(4_096, integer())
    scales: list[int] = option([1, 2, 3, 4, 5, 6, 8, 10, 13, 16], SCALES, RISING)
    code_dim: int = option(32, integer())
    num_scale_convs: int = option(4, integer(0))
    scale_conv_ratio: float = option(0.5, interval("(0, 1]"))
    scale_conv_table: str = option("var", one_of(CONV_TABLES))
    conditioning: str = option("adaptive", one_of(CONDITIONINGS))
    norm: str = option("rms", one_of(NORMS))
    feed_forward: str = option("swiglu", one_of(FEED_FORWARDS))
    qk_norm: str = option("rms", one_of(QK_NORMS))
    attention_bias: bool = option(False, FLAG)

    def complete(self, check: Checker) -> None:
        super().complete(check)
        side = min(self.grid)
        which = "side" if self.grid[0] == self.grid[1] else "shorter side"
        check("scales", f"a list that ends on {side}, the {which} of the grid", lambda scales: scales[-1] == side)
        check("num_kv_heads", "num_heads", lambda count: count == self.num_heads)
        if self.conditioning != "prefix":
            where = f'where conditioning is "{self.conditioning}"'
            check("condition_bias", f"false {where}", lambda on: not on)
            check("text_projection", f'"linear" {where}', lambda value: value == "linear")
            check("null_text", f'"token" {where}', lambda value: value == "token")

    @classmethod
    def fields_of_tokenizer(cls, tokenizer: Any) -> dict[str, Any]:
        names = ("scales", "code_dim", "num_scale_convs", "scale_conv_ratio", "scale_conv_table")
        return {name: getattr(tokenizer, name) for name in names}

    @property
    def usual_intermediate_size(self) -> int:
        return 4 * self.hidden_size if self.feed_forward == "gelu" else super().usual_intermediate_size

    @property
    def code_layout(self) -> dict:
        return make_layout((self.grid[0], self.grid[1]), 1, self.scales)

    @property
    def scale_shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of the map of each scale."""
        return [(rows, columns) for rows, columns in self.code_layout["shapes"]]

    @property
    def conv_of_scale(self) -> list[int]:
        """Which of the convolutions that are used each scale takes; empty if there are none."""
        taken = shared_convs(len(self.scales), self.num_scale_convs, self.scale_conv_table)
        used = sorted(set(taken))
        return [used.index(conv) for conv in taken]

    @property
    def prefix_length(self) -> int:
        return super().prefix_length if self.conditioning == "prefix" else 0
