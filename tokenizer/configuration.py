"""WassersteinVQConfig: everything that fixes a tokenizer's weights and codes."""

from __future__ import annotations

from typing import Any

from wvq.checks import FLAG, NAMES, Checker, Rule, at_most, integer, interval, is_number, or_null
from wvq.data.layout import make_layout, sequence_length
from wvq.errors import DataError
from wvq.models.config import option
from wvq.tokenizer.quantizers.registry import MethodsConfig

MULTIPLIERS = Rule(
    "a list of positive numbers",
    lambda value: isinstance(value, list) and len(value) > 0 and all(is_number(v) and v > 0 for v in value),
)
NOT_TOO_MANY = Rule("a list of at most 32 numbers", lambda value: len(value) <= 32)


class WassersteinVQConfig(MethodsConfig):
    """Configuration of a :class:`WassersteinVQModel`. The defaults are the 256-pixel, 256-token VQ-VAE of the paper.

    Args:
        image_size: side of the square pictures, in pixels; a multiple of the downsampling factor.
        in_channels: channels of a picture.
        patch_size: side of the pixel blocks folded into channels before the first convolution (1: none). 2 or 4 makes a
            small network several times cheaper, at the price of fine detail.
        base_channels: width of the first level.
        channel_multipliers: width of each level as a multiple of ``base_channels``; each level after the first halves
            the resolution.
        num_res_blocks: residual blocks a level (the decoder has one more, as is usual).
        attention: self-attention at the lowest resolution and in the middle block.
        dropout: inside residual blocks, in [0, 1).
        feature_dim: dims of the encoder's features and of what the decoder takes, where they are not the codes': linear
            projectors then lie between. For a new quantizer in a trained network; none if None.
        class_names: names of the classes of the training data, for reference only.
        cast_hashes: of weights that a cast has rounded: the hash of those that make codes as they were trained, and as
            they are since; see :meth:`WassersteinVQModel.made`.
        quantizer, ...: the fields of the quantizers (:class:`MethodsConfig`), each declared beside its method.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "wasserstein_vq"

    image_size: int = option(256, integer())
    in_channels: int = option(3, integer())
    patch_size: int = option(1, integer())
    base_channels: int = option(64, integer())
    channel_multipliers: list[float] = option([1, 1, 2, 2, 4], MULTIPLIERS, NOT_TOO_MANY)
    # A file that declares millions of layers would fill memory before its weights could contradict it.
    num_res_blocks: int = option(2, integer(), at_most(1_000))
    attention: bool = option(True, FLAG)
    dropout: float = option(0.0, interval("[0, 1)"), identity=False)
    feature_dim: int | None = option(None, or_null(integer()))
    class_names: list[str] = option([], NAMES, identity=False)
    cast_hashes: list[str] | None = option(None, or_null(NAMES), identity=False)

    def complete(self, check: Checker) -> None:
        super().complete(check)
        expected = f"a multiple of the downsampling factor {self.downsampling}"
        check("image_size", expected, lambda size: size % self.downsampling == 0)
        side = self.grid[0]
        if self.scales is not None:
            check("scales", f"a list that ends on {side}, the side of the grid of codes", lambda s: s[-1] == side)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if values["cast_hashes"] is None:
            del values["cast_hashes"]  # the version before, which does not know it, then reads the file
        return values

    def require_image_size(self, image_size: int, tokenizer: str) -> None:
        """Raise DataError if the setting ``data.image_size`` is not the size that ``tokenizer`` (its path) takes."""
        if image_size != self.image_size:
            raise DataError(
                f"data.image_size is {image_size}, but the tokenizer in {tokenizer} was trained on "
                f"{self.image_size}; set data.image_size to it"
            )

    @property
    def encoder_dim(self) -> int:
        """Dims of the encoder's features and of what the decoder takes."""
        return self.code_dim if self.feature_dim is None else self.feature_dim

    @property
    def downsampling(self) -> int:
        """Pixels per code along a side (f)."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of one picture."""
        side = self.image_size // self.downsampling
        return side, side

    @property
    def code_layout(self) -> dict:
        """Layout of a picture's codes (:mod:`wvq.data.layout`), as in ``header.json`` of a cache."""
        return make_layout(self.grid, self.num_groups, self.scales)

    @property
    def sequence_length(self) -> int:
        """Codes of one picture, over all codebooks or scales."""
        return sequence_length(self.code_layout)

    @property
    def channels(self) -> list[int]:
        """Width of each level."""
        return [max(1, round(self.base_channels * multiplier)) for multiplier in self.channel_multipliers]
