"""WassersteinVQConfig: everything that fixes a tokenizer's weights and codes."""

from __future__ import annotations

from wvq.checks import FLAG, NAMES, POSITIVE, Checker, Rule, at_most, integer, interval, list_of, one_of, or_null
from wvq.data.layout import make_layout, sequence_length
from wvq.errors import DataError
from wvq.models.config import option
from wvq.settings.data import FITS, PAD_COLORS, DataConfig
from wvq.settings.size import SIZE, Size, height_width
from wvq.tokenizer.quantizers.registry import MethodsConfig

MULTIPLIERS = list_of(POSITIVE, "a list of positive numbers")
ATTENTION = Rule("true, false or middle", lambda value: isinstance(value, bool) or value == "middle", FLAG.plain)
KERNEL = one_of((1, 3))
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
        attention: self-attention: at the lowest resolution and in the middle block (true), ``middle`` for the middle
            block alone, or none (false).
        downsample: padding of the convolutions that halve the resolution: ``symmetric``, a pixel on all sides, or
            ``asymmetric``, a row below and a column right, as taming-transformers, LlamaGen and VAR have it.
        end_kernel: side of the kernels of the encoder's last and the decoder's first convolution, 1 or 3.
        latent_channels: channels of the encoder's last convolution, where one more, which is part of the encoder,
            leads from them to the features, and one of the decoder back to them (taming-transformers' z channels and
            its quant_conv and post_quant_conv); None for neither.
        latent_kernel: side of the kernels of those two, 1 or 3.
        pixel_range: pixels that the network sees: ``signed``, in [-1, 1], or ``unit``, in [0, 1]. The model takes and
            gives pictures in [-1, 1] either way.
        dropout: inside residual blocks, in [0, 1).
        feature_dim: dims of the encoder's features and of what the decoder takes, where they are not the codes': linear
            projectors then lie between. For a new quantizer in a trained network; none if None.
        residual_projector: width of the convolutions that add to the quantized features what quantizing took from them
            (:class:`wvq.tokenizer.networks.ResidualProjector`); none if None.
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
    attention: bool | str = option(True, ATTENTION)
    downsample: str = option("symmetric", one_of(("symmetric", "asymmetric")), later=True)
    end_kernel: int = option(1, KERNEL, later=True)
    latent_channels: int | None = option(None, or_null(integer()), later=True)
    latent_kernel: int = option(1, KERNEL, later=True)
    pixel_range: str = option("signed", one_of(("signed", "unit")), later=True)
    dropout: float = option(0.0, interval("[0, 1)"), identity=False)
    feature_dim: int | None = option(None, or_null(integer()))
    # Outside of the identity, so that codes stay those of a tokenizer that gets one: its weights are in the hash.
    residual_projector: int | None = option(None, or_null(integer()), identity=False, later=True)
    fit: str = option("crop", one_of(FITS), identity=False, later=True)
    pad_color: str = option("auto", one_of(PAD_COLORS), identity=False, later=True)
    class_names: list[str] = option([], NAMES, identity=False)
    cast_hashes: list[str] | None = option(None, or_null(NAMES), identity=False, later=True)

    def complete(self, check: Checker) -> None:
        super().complete(check)
        factor = self.downsampling
        expected = f"a multiple of the downsampling factor {factor}" + (
            "" if isinstance(self.image_size, int) else " in height and width"
        )
        check("image_size", expected, lambda size: all(side % factor == 0 for side in height_width(size)))
        if self.latent_channels is None:
            check("latent_kernel", "1 where latent_channels is null", lambda side: side == 1)
        side = min(self.grid)
        if self.scales is not None:
            which = "" if self.grid[0] == self.grid[1] else "shorter "
            expected = f"a list that ends on {side}, the {which}side of the grid of codes"
            check("scales", expected, lambda scales: scales[-1] == side)

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
