"""WassersteinVQConfig: everything that fixes a tokenizer's weights and codes."""

from __future__ import annotations

from typing import Any

from wvq.checks import FLAG, NAMES, POSITIVE, Checker, Rule, at_most, integer, interval, list_of, one_of, or_null
from wvq.data.layout import make_layout, sequence_length
from wvq.errors import DataError
from wvq.models.config import option
from wvq.settings.data import FITS, PAD_COLORS, DataConfig
from wvq.settings.size import SIZE, Size, height_width
from wvq.tokenizer.quantizers.registry import MethodsConfig

MULTIPLIERS = list_of(POSITIVE, "a list of positive numbers")
NOT_TOO_MANY = Rule("a list of at most 32 numbers", lambda value: len(value) <= 32)


class WassersteinVQConfig(MethodsConfig):
    """Configuration of a :class:`WassersteinVQModel`. The defaults are the 256-pixel, 256-token VQ-VAE of the paper.

    Args:
        image_size: size of the pictures in pixels: the side of a square, or [height, width]; multiples of the
            downsampling factor.
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
        fit, pad_color: how the training pictures got their size (:class:`wvq.settings.data.DataConfig`), so that later
            stages can tell when theirs get it in another way.
        class_names: names of the classes of the training data, for reference only.
        cast_hashes: of weights that a cast has rounded: the hash of those that make codes as they were trained, and as
            they are since; see :meth:`WassersteinVQModel.made`.
        quantizer, ...: the fields of the quantizers (:class:`MethodsConfig`), each declared beside its method.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "wasserstein_vq"

    image_size: Size = option(256, SIZE)
    in_channels: int = option(3, integer())
    patch_size: int = option(1, integer())
    base_channels: int = option(64, integer())
    channel_multipliers: list[float] = option([1, 1, 2, 2, 4], MULTIPLIERS, NOT_TOO_MANY)
    # A file that declares millions of layers would fill memory before its weights could contradict it.
    num_res_blocks: int = option(2, integer(), at_most(1_000))
    attention: bool = option(True, FLAG)
    dropout: float = option(0.0, interval("[0, 1)"), identity=False)
    feature_dim: int | None = option(None, or_null(integer()))
    fit: str = option("crop", one_of(FITS), identity=False)
    pad_color: str = option("auto", one_of(PAD_COLORS), identity=False)
    class_names: list[str] = option([], NAMES, identity=False)
    cast_hashes: list[str] | None = option(None, or_null(NAMES), identity=False)

    def complete(self, check: Checker) -> None:
        super().complete(check)
        factor = self.downsampling
        expected = f"a multiple of the downsampling factor {factor}" + (
            "" if isinstance(self.image_size, int) else " in height and width"
        )
        check("image_size", expected, lambda size: all(side % factor == 0 for side in height_width(size)))
        side = min(self.grid)
        if self.scales is not None:
            which = "" if self.grid[0] == self.grid[1] else "shorter "
            expected = f"a list that ends on {side}, the {which}side of the grid of codes"
            check("scales", expected, lambda scales: scales[-1] == side)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        for name, default in (
            ("cast_hashes", None),
            ("fit", "crop"),
            ("pad_color", "auto"),
            ("scale_conv_table", None),
            ("scale_weights", None),
        ):
            if values[name] == default:
                del values[name]  # the version before, which does not know it, then reads the file
        return values

    def require_image_size(self, data: DataConfig, tokenizer: str) -> None:
        """Raise DataError if the pictures of a recipe do not have the size that ``tokenizer`` (its path) takes."""
        if data.size != self.image_size:
            raise DataError(
                f"data.image_size is {data.size}, but the tokenizer in {tokenizer} was trained on "
                f"{self.image_size}; set data.image_size to it"
            )

    def other_fit(self, data: DataConfig, tokenizer: str) -> str | None:
        """A warning if the pictures of a recipe get their size in another way than those that ``tokenizer`` (its path)
        was trained on; None if not.
        """
        here, before = _fit_text(data.fit, data.pad_color), _fit_text(self.fit, self.pad_color)
        if here == before:
            return None
        return f"the tokenizer in {tokenizer} was trained with {before}, and here it is {here}; set it as there"

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
        height, width = height_width(self.image_size)
        return height // self.downsampling, width // self.downsampling

    @property
    def scale_shapes(self) -> list[tuple[int, int]]:
        return [(rows, columns) for rows, columns in self.code_layout["shapes"]] if self.scales else []

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


def _fit_text(fit: str, pad_color: str) -> str:
    return f"data.fit {fit}" + (f" and data.pad_color {pad_color}" if fit == "pad" else "")
