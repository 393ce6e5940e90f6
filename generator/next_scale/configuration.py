"""NextScaleTransformerConfig: the generator of multi-scale codes."""

from __future__ import annotations

from itertools import pairwise

from wvq.checks import FLAG, NAMES, POSITIVE, Checker, Rule, at_most, integer, interval, list_of, one_of, or_null
from wvq.data.layout import make_layout, sequence_length
from wvq.errors import ConfigError, near_match
from wvq.generator.configuration import GENERATOR_SIZES, GRID
from wvq.generator.text.families import TEXT_PADDINGS
from wvq.models.config import StrictConfig, option
from wvq.models.scale_maps import CONV_TABLES, shared_convs

SCALES = list_of(integer(), "a rising list of integers of at least 1")
RISING = Rule(SCALES.expected, lambda scales: all(coarse < fine for coarse, fine in pairwise(scales)))
CONDITIONINGS = ("adaptive", "adaptive_shared", "prefix")
NORMS = ("rms", "layer")
FEED_FORWARDS = ("swiglu", "gelu")
QK_NORMS = ("none", "rms", "l2")


class NextScaleTransformerConfig(StrictConfig):
    """Configuration of a :class:`NextScaleTransformer`.

    Args:
        size: a name in ``GENERATOR_SIZES`` that sets layers, heads and width; None to give them one by one.
        num_codes: codebook size K of the tokenizer.
        grid: rows and columns of the finest map.
        scales: sides of the maps, rising up to the grid's; of a grid that is not square, the shorter sides.
        code_dim: dims D of the tokenizer's code vectors, of which the inputs are made.
        num_scale_convs, scale_conv_ratio, scale_conv_table: the tokenizer's, see
            :class:`wvq.tokenizer.quantizers.multiscale.MultiScaleConfig`.
        hidden_size, num_layers, num_heads: width, depth, attention heads.
        intermediate_size: width of the feed-forward layer; if None, 8/3 of ``hidden_size``, rounded up to 64, for
            ``swiglu``, and four times it for ``gelu``.
        conditioning: ``adaptive``: the condition as one vector, from which each layer makes shifts, scales and gates
            of its norms and branches, and which is the first input; ``adaptive_shared``: one such layer for all, to
            which each adds its own; ``prefix``: tokens ahead of the codes, as in an ``ImageCodeTransformer``.
        norm: ``rms`` or ``layer``.
        feed_forward: ``swiglu``, or ``gelu`` (by tanh) with biases.
        qk_norm: of queries and keys of each head: ``none``, ``rms``, or ``l2`` with a trained scale a head.
        attention_bias: biases of queries, values and the output of attention, and of the head.
        dropout: on the output of attention, in [0, 1).
        feed_forward_dropout: on the output of the feed-forward layer, in [0, 1); as ``dropout`` if None.
        drop_path: share of pictures whose branch is left out in training, at the last layer, in [0, 1); it rises from
            0 at the first.
        token_dropout: on the input tokens, in [0, 1).
        norm_eps: epsilon of the norms.
        initializer_range: standard deviation of the weights' start.
        condition_bias: with ``prefix``, add a vector made from the condition to every code's token.
        num_classes, class_names, text_dim, text_length, text_padding, text_encoder_hash, tokenizer_hash: as in
            :class:`wvq.generator.configuration.ImageCodeTransformerConfig`.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "next_scale_transformer"

    size: str | None = option(None, identity=False)
    num_codes: int = option(4_096, integer())
    grid: list[int] = option([16, 16], GRID)
    scales: list[int] = option([1, 2, 3, 4, 5, 6, 8, 10, 13, 16], SCALES, RISING)
    code_dim: int = option(32, integer())
    num_scale_convs: int = option(4, integer(0))
    scale_conv_ratio: float = option(0.5, interval("(0, 1]"))
    scale_conv_table: str = option("var", one_of(CONV_TABLES))
    hidden_size: int = option(768, integer())
    num_layers: int = option(12, integer(), at_most(10_000))
    num_heads: int = option(12, integer())
    intermediate_size: int = option(None, or_null(integer()))
    conditioning: str = option("adaptive", one_of(CONDITIONINGS))
    norm: str = option("rms", one_of(NORMS))
    feed_forward: str = option("swiglu", one_of(FEED_FORWARDS))
    qk_norm: str = option("rms", one_of(QK_NORMS))
    attention_bias: bool = option(False, FLAG)
    dropout: float = option(0.1, interval("[0, 1)"), identity=False)
    feed_forward_dropout: float = option(None, or_null(interval("[0, 1)")), identity=False)
    drop_path: float = option(0.0, interval("[0, 1)"), identity=False)
    token_dropout: float = option(0.1, interval("[0, 1)"), identity=False)
    norm_eps: float = option(1e-5, POSITIVE)
    initializer_range: float = option(0.02, POSITIVE, identity=False)
    condition_bias: bool = option(False, FLAG)
    num_classes: int = option(0, integer(0))
    class_names: list[str] = option([], NAMES, identity=False)
    text_dim: int = option(0, integer(0))
    text_length: int = option(0, integer(0))
    text_padding: str = option("left", one_of(TEXT_PADDINGS))
    text_encoder_hash: str | None = option(None, identity=False)
    tokenizer_hash: str | None = option(None, identity=False)

    def complete(self, check: Checker) -> None:
        super().complete(check)
        if self.size is not None:
            if self.size not in GENERATOR_SIZES:
                near, known = near_match(self.size, GENERATOR_SIZES), ", ".join(GENERATOR_SIZES)
                raise ConfigError(f'size "{self.size}" is unknown{near}; one of {known}')
            for name, value in GENERATOR_SIZES[self.size].items():
                setattr(self, name, value)
        if self.intermediate_size is None:
            swiglu = -(-8 * self.hidden_size // 192) * 64
            self.intermediate_size = swiglu if self.feed_forward == "swiglu" else 4 * self.hidden_size
        if self.feed_forward_dropout is None:
            self.feed_forward_dropout = self.dropout
        side = min(self.grid)
        which = "side" if self.grid[0] == self.grid[1] else "shorter side"
        check("scales", f"a list that ends on {side}, the {which} of the grid", lambda scales: scales[-1] == side)
        check("num_heads", "a divisor of hidden_size", lambda count: self.hidden_size % count == 0)
        check("class_names", f"empty or {self.num_classes} names", lambda names: len(names) in (0, self.num_classes))
        check("text_length", "above 0 if and only if text_dim is", lambda length: bool(length) == bool(self.text_dim))
        if self.conditioning != "prefix":
            check("condition_bias", f'false where conditioning is "{self.conditioning}"', lambda on: not on)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: one a head of queries."""
        return self.num_heads

    @property
    def code_layout(self) -> dict:
        """Layout of a picture's codes (:mod:`wvq.data.layout`)."""
        return make_layout((self.grid[0], self.grid[1]), 1, self.scales)

    @property
    def scale_shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of the map of each scale."""
        return [(rows, columns) for rows, columns in self.code_layout["shapes"]]

    @property
    def sequence_length(self) -> int:
        """Codes of one picture, over all scales."""
        return sequence_length(self.code_layout)

    @property
    def conv_of_scale(self) -> list[int]:
        """Which of the convolutions that are used each scale takes; empty if there are none."""
        taken = shared_convs(len(self.scales), self.num_scale_convs, self.scale_conv_table)
        used = sorted(set(taken))
        return [used.index(conv) for conv in taken]

    @property
    def has_class_token(self) -> bool:
        """Whether the prefix starts with a class token; a model with no condition has the null row alone."""
        return self.num_classes > 0 or self.text_dim == 0

    @property
    def prefix_length(self) -> int:
        """Condition tokens ahead of the codes."""
        return int(self.has_class_token) + self.text_length if self.conditioning == "prefix" else 0
