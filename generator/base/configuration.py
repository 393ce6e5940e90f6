"""What the configs of all generators share, and the table of their sizes."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from wvq.checks import FLAG, NAMES, POSITIVE, Checker, at_most, integer, interval, list_of, one_of, or_null
from wvq.data.layout import sequence_length
from wvq.errors import ConfigError, near_match
from wvq.generator.text.cleaning import TEXT_CLEANINGS
from wvq.generator.text.families import TEXT_PADDINGS
from wvq.models.config import StrictConfig, option

# Layers, heads and widths of LlamaGen (arXiv 2406.06525, table 1) and, d16 to d30, of VAR (arXiv 2404.02905). 3B has 40
# heads of 80 in place of 32 of 100: a head size of 100 falls out of the fast attention kernels.
GENERATOR_SIZES = {
    "S": {"num_layers": 12, "num_heads": 6, "hidden_size": 384},
    "B": {"num_layers": 12, "num_heads": 12, "hidden_size": 768},
    "L": {"num_layers": 24, "num_heads": 16, "hidden_size": 1024},
    "XL": {"num_layers": 36, "num_heads": 20, "hidden_size": 1280},
    "XXL": {"num_layers": 48, "num_heads": 24, "hidden_size": 1536},
    "3B": {"num_layers": 24, "num_heads": 40, "hidden_size": 3200},
    **{f"d{depth}": {"num_layers": depth, "num_heads": depth, "hidden_size": 64 * depth} for depth in (16, 20, 24, 30)},
}
GRID = list_of(integer(), "two integers of at least 1", 2)
TEXT_PROJECTIONS = ("linear", "mlp")
NULL_TEXTS = ("token", "features")
PREFIX_ROTARIES = ("identity", "erased")


class GeneratorConfig(StrictConfig):
    """Fields that all generators of image codes have.

    Args:
        size: a name in ``GENERATOR_SIZES`` that sets layers, heads and width; None to give them one by one.
        num_codes: codebook size K of the tokenizer.
        grid: rows and columns of codes.
        hidden_size, num_layers, num_heads: width, depth, attention heads.
        num_kv_heads: key/value heads of grouped-query attention; ``num_heads`` if None.
        intermediate_size: width of the feed-forward layer; 8/3 of ``hidden_size``, rounded up to 64, if None.
        dropout: on the output of attention, in [0, 1).
        feed_forward_dropout: on the output of the feed-forward layer, in [0, 1); as ``dropout`` if None.
        drop_path: share of pictures whose branch is left out in training (stochastic depth, Huang et al. 2016), in
            [0, 1); it rises from 0 at the first layer to this at the last.
        token_dropout: on the input tokens, in [0, 1).
        norm_eps: epsilon of the norms.
        initializer_range: standard deviation of the weights' start.
        condition_bias: add a vector made from the condition to every code's token, beside the prefix tokens; a short
            training then learns to follow conditions much sooner.
        num_classes: classes; 0 for none.
        class_names: names of the classes, in order of their ids.
        text_dim: width of the text encoder's hidden states; 0 for no text.
        text_length: tokens of a caption.
        text_padding: where captions were padded inside the text encoder: ``right``, as they are encoded now; or
            ``left``, as in earlier versions, whose configs lack this field.
        text_cleaning: how captions are prepared for the text encoder (:mod:`wvq.generator.text.cleaning`): ``none``, or
            ``lower`` as LlamaGen has it.
        text_projection: from the text encoder's features to the model's width: ``linear``, or ``mlp``, two layers
            without biases and a GELU by tanh between them, as in LlamaGen.
        null_text: what stands for a text that is left out: ``token``, one trained token in the last place; or
            ``features``, a trained vector for each place of the features, seen under the mask of the text that it
            replaces, as in LlamaGen.
        text_encoder_hash: identity of the text encoder that the model was trained with (:meth:`TextEncoder.identity`).
            A pipeline compares its own with it, unless it is None, as in configs without this field.
        tokenizer_hash: what made the codes that the model was trained on (:meth:`WassersteinVQModel.codes_hash`); in
            configs of earlier versions the hash of its weights alone.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    size: str | None = option(None, identity=False)
    num_codes: int = option(16_384, integer())
    grid: list[int] = option([16, 16], GRID)
    hidden_size: int = option(768, integer())
    # A file that declares millions of layers would fill memory before its weights could contradict it.
    num_layers: int = option(12, integer(), at_most(10_000))
    num_heads: int = option(12, integer())
    num_kv_heads: int = option(None, or_null(integer()))
    intermediate_size: int = option(None, or_null(integer()))
    dropout: float = option(0.1, interval("[0, 1)"), identity=False)
    token_dropout: float = option(0.1, interval("[0, 1)"), identity=False)
    feed_forward_dropout: float = option(None, or_null(interval("[0, 1)")), identity=False)
    drop_path: float = option(0.0, interval("[0, 1)"), identity=False)
    norm_eps: float = option(1e-5, POSITIVE)
    initializer_range: float = option(0.02, POSITIVE, identity=False)
    condition_bias: bool = option(False, FLAG)
    num_classes: int = option(0, integer(0))
    class_names: list[str] = option([], NAMES, identity=False)  # a class is drawn by its id
    text_dim: int = option(0, integer(0))
    text_length: int = option(0, integer(0))
    text_padding: str = option("left", one_of(TEXT_PADDINGS))
    text_cleaning: str = option("none", one_of(TEXT_CLEANINGS), later=True)
    text_projection: str = option("linear", one_of(TEXT_PROJECTIONS), later=True)
    null_text: str = option("token", one_of(NULL_TEXTS), later=True)
    text_encoder_hash: str | None = option(None, identity=False)
    tokenizer_hash: str | None = option(None, identity=False)

    def complete(self, check: Checker) -> None:
        super().complete(check)
        if self.size is not None:
            if self.size not in GENERATOR_SIZES:
                known = ", ".join(GENERATOR_SIZES)
                near = near_match(self.size, GENERATOR_SIZES)
                raise ConfigError(f'size "{self.size}" is unknown{near}; one of {known}')
            for name, value in GENERATOR_SIZES[self.size].items():
                setattr(self, name, value)
        if self.num_kv_heads is None:
            self.num_kv_heads = self.num_heads
        if self.intermediate_size is None:
            self.intermediate_size = self.usual_intermediate_size
        if self.feed_forward_dropout is None:
            self.feed_forward_dropout = self.dropout
        check("num_heads", "a divisor of hidden_size", lambda count: self.hidden_size % count == 0)
        check("num_kv_heads", "a divisor of num_heads", lambda count: self.num_heads % count == 0)
        check("class_names", f"empty or {self.num_classes} names", lambda names: len(names) in (0, self.num_classes))
        if not self.text_dim:
            for field, default in (("text_cleaning", "none"), ("text_projection", "linear"), ("null_text", "token")):
                check(field, f'"{default}" where text_dim is 0', partial(operator.eq, default))
        check("text_length", "above 0 if and only if text_dim is", lambda length: bool(length) == bool(self.text_dim))

    @property
    def usual_intermediate_size(self) -> int:
        """Width of the feed-forward layer where none is given."""
        return -(-8 * self.hidden_size // 192) * 64

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @classmethod
    def fields_of_tokenizer(cls, tokenizer: Any) -> dict[str, Any]:
        """Fields that must be those of the config of the tokenizer whose codes are drawn, beside number and grid."""
        return {}

    @property
    def code_layout(self) -> dict:
        """Layout of a picture's codes (:mod:`wvq.data.layout`)."""
        raise NotImplementedError

    @property
    def sequence_length(self) -> int:
        """Codes of one picture."""
        return sequence_length(self.code_layout)

    @property
    def num_positions(self) -> int:
        """Tokens of one picture behind the prefix, of which keys and values are kept."""
        return self.sequence_length

    @property
    def has_class_token(self) -> bool:
        """Whether the prefix starts with a class token; a model with no condition has the null row alone."""
        return self.num_classes > 0 or self.text_dim == 0

    @property
    def prefix_length(self) -> int:
        """Condition tokens ahead of the codes."""
        return int(self.has_class_token) + self.text_length


class RotaryConfig(GeneratorConfig):
    """Fields of a Llama-style body with rotary positions over the grid.

    Args:
        qk_norm: RMS-normalise queries and keys of each head.
        rope_theta: base of the rotary frequencies.
        prefix_rotary: what rotation does to the condition tokens: ``identity`` leaves them as they are; ``erased``
            makes their queries and keys zero, by a cosine and a sine of 0, so that all that see one see it alike, as in
            LlamaGen.
        code_dim: dims D of the tokenizer's code vectors if the model is to see them: input embeddings and logits then
            also pass through a small linear map of the vectors (0: codes are plain indices).
        size, ...: those of :class:`GeneratorConfig`.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    qk_norm: bool = option(False, FLAG)
    rope_theta: float = option(10_000.0, POSITIVE)
    prefix_rotary: str = option("identity", one_of(PREFIX_ROTARIES), later=True)
    code_dim: int = option(0, integer(0))

    def complete(self, check: Checker) -> None:
        super().complete(check)
        heads = "a divisor of hidden_size with a head size that is a multiple of 4"
        check("num_heads", heads, lambda count: self.hidden_size % count == 0 and self.head_dim % 4 == 0)
