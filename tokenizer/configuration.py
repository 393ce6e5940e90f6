"""WassersteinVQConfig: everything that fixes a tokenizer's weights and codes."""

from __future__ import annotations

from wvq.errors import DataError
from wvq.pretrained import StrictConfig, as_list, is_integer, is_number


class WassersteinVQConfig(StrictConfig):
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
        num_codes: codebook size K.
        code_dim: dims D of a code.
        quantizer: name in the registry of quantizers.
        codebook_weight, commitment_weight, alignment_weight: alpha, beta and gamma of the quantizer's loss; the
            quantizer's published values if None.
        window_size: number of recent features whose moments the "wasserstein" alignment matches.
        num_projections: random directions per step of the "sliced" alignment.
        class_names: names of the classes of the training data, for reference only.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "wasserstein_vq"

    def __init__(
        self,
        image_size: int = 256,
        in_channels: int = 3,
        patch_size: int = 1,
        base_channels: int = 64,
        channel_multipliers: list[float] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention: bool = True,
        dropout: float = 0.0,
        num_codes: int = 16_384,
        code_dim: int = 8,
        quantizer: str = "wasserstein",
        codebook_weight: float | None = None,
        commitment_weight: float | None = None,
        alignment_weight: float | None = None,
        window_size: int = 65_536,
        num_projections: int = 16,
        class_names: list[str] = (),
        **kwargs,
    ):
        self.image_size = image_size
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.base_channels = base_channels
        self.channel_multipliers = as_list(channel_multipliers)
        self.num_res_blocks = num_res_blocks
        self.attention = attention
        self.dropout = dropout
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.quantizer = quantizer
        self.codebook_weight = codebook_weight
        self.commitment_weight = commitment_weight
        self.alignment_weight = alignment_weight
        self.window_size = window_size
        self.num_projections = num_projections
        self.class_names = as_list(class_names)
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        from wvq.tokenizer.quantizers import check_quantizer_name  # not at the top: quantizers need torch

        for field in ("image_size", "in_channels", "patch_size", "base_channels", "num_res_blocks"):
            self._require(field, is_integer(getattr(self, field)), "an integer of at least 1")
        for field in ("num_codes", "code_dim", "window_size", "num_projections"):
            self._require(field, is_integer(getattr(self, field)), "an integer of at least 1")
        self._require("num_codes", self.num_codes < 2**31, "below 2**31")
        multipliers = self.channel_multipliers
        numbers = isinstance(multipliers, list) and all(is_number(m) and m > 0 for m in multipliers)
        self._require("channel_multipliers", numbers and len(multipliers) > 0, "a list of positive numbers")
        names = isinstance(self.class_names, list) and all(isinstance(name, str) for name in self.class_names)
        self._require("class_names", names, "a list of names")
        self._require("attention", isinstance(self.attention, bool), "true or false")
        self._require("dropout", is_number(self.dropout) and self.dropout < 1, "in [0, 1)")
        for field in ("codebook_weight", "commitment_weight", "alignment_weight"):
            value = getattr(self, field)
            self._require(field, value is None or is_number(value), "a number of at least 0, or null")
        wanted = f"a multiple of the downsampling factor {self.downsampling}"
        self._require("image_size", self.image_size % self.downsampling == 0, wanted)
        check_quantizer_name(self.quantizer)

    def require_image_size(self, image_size: int, tokenizer: str) -> None:
        """Raise DataError if the setting ``data.image_size`` is not the size that ``tokenizer`` (its path) takes."""
        if image_size != self.image_size:
            raise DataError(
                f"data.image_size is {image_size}, but the tokenizer in {tokenizer} was trained on "
                f"{self.image_size}; set data.image_size to it"
            )

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
    def channels(self) -> list[int]:
        """Width of each level."""
        return [max(1, round(self.base_channels * multiplier)) for multiplier in self.channel_multipliers]
