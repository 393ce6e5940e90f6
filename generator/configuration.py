"""ImageCodeTransformerConfig, and the table of generator sizes."""

from __future__ import annotations

from wvq.checks import as_list, is_integer, is_number
from wvq.errors import ConfigError, near_match
from wvq.generator.text.families import TEXT_PADDINGS
from wvq.models.pretrained import StrictConfig

# Layers, heads and widths of LlamaGen (arXiv 2406.06525, table 1). 3B has 40 heads of 80 in place of 32 of 100: a head
# size of 100 falls out of the fast attention kernels.
GENERATOR_SIZES = {
    "S": {"num_layers": 12, "num_heads": 6, "hidden_size": 384},
    "B": {"num_layers": 12, "num_heads": 12, "hidden_size": 768},
    "L": {"num_layers": 24, "num_heads": 16, "hidden_size": 1024},
    "XL": {"num_layers": 36, "num_heads": 20, "hidden_size": 1280},
    "XXL": {"num_layers": 48, "num_heads": 24, "hidden_size": 1536},
    "3B": {"num_layers": 24, "num_heads": 40, "hidden_size": 3200},
}
HEADS = ("zero", "normal", "tied")


class ImageCodeTransformerConfig(StrictConfig):
    """Configuration of an :class:`ImageCodeTransformer`.

    Args:
        size: a name in ``GENERATOR_SIZES`` that sets layers, heads and width; None to give them one by one.
        num_codes: codebook size K of the tokenizer.
        grid: rows and columns of codes.
        hidden_size, num_layers, num_heads: width, depth, attention heads.
        num_kv_heads: key/value heads of grouped-query attention; ``num_heads`` if None.
        intermediate_size: width of the feed-forward layer; 8/3 of ``hidden_size``, rounded up to 64, if None.
        qk_norm: RMS-normalise queries and keys of each head.
        dropout: on the output of attention, in [0, 1).
        feed_forward_dropout: on the output of the feed-forward layer, in [0, 1); as ``dropout`` if None.
        drop_path: share of pictures whose branch is left out in training (stochastic depth, Huang et al. 2016), in
            [0, 1); it rises from 0 at the first layer to this at the last.
        token_dropout: on the input tokens, in [0, 1).
        rope_theta: base of the rotary frequencies.
        norm_eps: of RMSNorm.
        initializer_range: standard deviation of the weights' start.
        head: output layer: ``zero`` starts at zero, so that the first loss is ln K; ``normal`` starts like the other
            weights; ``tied`` shares those of the code embedding.
        code_dim: dims D of the tokenizer's code vectors if the model is to see them: input embeddings and logits then
            also pass through a small linear map of the vectors (0: codes are plain indices).
        target_positions: add a trained vector of the position that each token predicts; lets the codes be read in any
            order (RAR, arXiv 2411.00776).
        condition_bias: add a vector made from the condition to every code's token, beside the prefix tokens; a short
            training then learns to follow conditions much sooner.
        num_classes: classes; 0 for none.
        class_names: names of the classes, in order of their ids.
        text_dim: width of the text encoder's hidden states; 0 for no text.
        text_length: tokens of a caption.
        text_padding: where captions were padded inside the text encoder: ``right``, as they are encoded now; or
            ``left``, as before: a config without this field is from then.
        text_encoder_hash: identity of the text encoder that the model was trained with (:meth:`TextEncoder.identity`).
            A pipeline holds its own against it; None, as in configs without this field, compares nothing.
        tokenizer_hash: what made the codes that the model was trained on (:meth:`WassersteinVQModel.codes_hash`); in
            configs of earlier versions the hash of its weights alone.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "image_code_transformer"
    # Class names too: a class is drawn by its id.
    outside_identity = frozenset(
        {"size", "dropout", "token_dropout", "feed_forward_dropout", "drop_path", "initializer_range", "head"}
        | {"class_names"}
    )

    def __init__(
        self,
        size: str | None = None,
        num_codes: int = 16_384,
        grid: list[int] = (16, 16),
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        num_kv_heads: int | None = None,
        intermediate_size: int | None = None,
        qk_norm: bool = False,
        dropout: float = 0.1,
        token_dropout: float = 0.1,
        feed_forward_dropout: float | None = None,
        drop_path: float = 0.0,
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        head: str = "zero",
        code_dim: int = 0,
        target_positions: bool = False,
        condition_bias: bool = False,
        num_classes: int = 0,
        class_names: list[str] = (),
        text_dim: int = 0,
        text_length: int = 0,
        text_padding: str = "left",
        text_encoder_hash: str | None = None,
        tokenizer_hash: str | None = None,
        **kwargs,
    ):
        if size is not None:
            if size not in GENERATOR_SIZES:
                known = ", ".join(GENERATOR_SIZES)
                raise ConfigError(f'size "{size}" is unknown{near_match(size, GENERATOR_SIZES)}; one of {known}')
            row = GENERATOR_SIZES[size]
            hidden_size, num_layers, num_heads = row["hidden_size"], row["num_layers"], row["num_heads"]
        self.size = size
        self.num_codes = num_codes
        self.grid = as_list(grid)
        self.hidden_size = hidden_size
        self._require("hidden_size", is_integer(hidden_size), "an integer of at least 1")
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.intermediate_size = -(-8 * hidden_size // 192) * 64 if intermediate_size is None else intermediate_size
        self.qk_norm = qk_norm
        self.dropout = dropout
        self.token_dropout = token_dropout
        self.feed_forward_dropout = dropout if feed_forward_dropout is None else feed_forward_dropout
        self.drop_path = drop_path
        self.rope_theta = rope_theta
        self.norm_eps = norm_eps
        self.initializer_range = initializer_range
        self.head = head
        self.code_dim = code_dim
        self.target_positions = target_positions
        self.condition_bias = condition_bias
        self.num_classes = num_classes
        self.class_names = as_list(class_names)
        self.text_dim = text_dim
        self.text_length = text_length
        self.text_padding = text_padding
        self.text_encoder_hash = text_encoder_hash
        self.tokenizer_hash = tokenizer_hash
        self._check()  # first: transformers computes with the fields
        super().__init__(**kwargs)

    def _check(self) -> None:
        for field in ("num_codes", "num_layers", "num_heads", "num_kv_heads", "intermediate_size"):
            self._require(field, is_integer(getattr(self, field)), "an integer of at least 1")
        # A file that declares millions of layers would fill memory before its weights could contradict it.
        self._require("num_layers", self.num_layers <= 10_000, "at most 10,000")
        for field in ("code_dim", "num_classes", "text_dim", "text_length"):
            self._require(field, is_integer(getattr(self, field), 0), "an integer of at least 0")
        two = isinstance(self.grid, list) and len(self.grid) == 2
        self._require("grid", two and all(map(is_integer, self.grid)), "two integers of at least 1")
        whole = self.hidden_size % self.num_heads == 0 and self.head_dim % 4 == 0
        self._require("num_heads", whole, "a divisor of hidden_size with a head size that is a multiple of 4")
        self._require("num_kv_heads", self.num_heads % self.num_kv_heads == 0, "a divisor of num_heads")
        for field in ("dropout", "token_dropout", "feed_forward_dropout", "drop_path"):
            self._require(field, is_number(getattr(self, field)) and getattr(self, field) < 1, "in [0, 1)")
        for field in ("rope_theta", "norm_eps", "initializer_range"):
            self._require(field, is_number(getattr(self, field)) and getattr(self, field) > 0, "a number above 0")
        for field in ("qk_norm", "condition_bias", "target_positions"):
            self._require(field, isinstance(getattr(self, field), bool), "true or false")
        self._require("head", self.head in HEADS, f"one of {', '.join(HEADS)}")
        names_fit = isinstance(self.class_names, list) and len(self.class_names) in (0, self.num_classes)
        names_fit = names_fit and all(isinstance(name, str) for name in self.class_names)
        self._require("class_names", names_fit, f"empty or {self.num_classes} names")
        self._require("text_padding", self.text_padding in TEXT_PADDINGS, f"one of {', '.join(TEXT_PADDINGS)}")
        self._require(
            "text_length", bool(self.text_length) == bool(self.text_dim), "above 0 if and only if text_dim is"
        )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def sequence_length(self) -> int:
        """Codes of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def has_class_token(self) -> bool:
        """Whether the prefix starts with a class token; a model with no condition has the null row alone."""
        return self.num_classes > 0 or self.text_dim == 0

    @property
    def prefix_length(self) -> int:
        """Condition tokens ahead of the codes."""
        return int(self.has_class_token) + self.text_length
