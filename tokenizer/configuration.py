"""WassersteinVQConfig: everything that fixes a tokenizer's weights and codes."""

from __future__ import annotations

from itertools import pairwise

from wvq.checks import as_list, is_integer, is_number
from wvq.data.layout import make_layout, sequence_length
from wvq.errors import DataError
from wvq.models.pretrained import StrictConfig


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
        num_codes: size K of a codebook.
        code_dim: dims D of the quantized features, over all codebooks.
        feature_dim: dims of the encoder's features and of what the decoder takes, where they are not the codes': linear
            projectors then lie between. For a new quantizer in a trained network; none if None.
        num_groups: codebooks G of a product quantizer; each has K codes of D / G dims.
        scales: sides of the maps of a multi-scale quantizer, rising up to the side of the grid; None for one map.
        num_scale_convs: 3 x 3 convolutions that neighbouring scales share, at most one a scale; 0 for none.
        scale_conv_ratio: share, in (0, 1], of such a convolution's output in what passes it; its input is the rest.
        quantizer: name in the registry of quantizers.
        gradient_estimator: how the decoder's gradient reaches the encoder, "ste" or "rotation".
        codebook_weight, commitment_weight, alignment_weight, entropy_weight: alpha, beta, gamma and the weight of the
            entropy term in the quantizer's loss; the quantizer's published values if None.
        target_scale: tau > 0; an alignment matches the codes to the features' distribution widened by tau.
        window_size: number of recent features whose moments "wasserstein" and "affine" match.
        num_projections: random directions per step of the "sliced" alignment.
        num_samples: features, and codes, per step that the "mmd" alignment compares.
        affine_interval: steps from one affine map of the "affine" codebook to the next.
        ema_decay: decay, in (0, 1), of the running statistics of "ema" and "online"; published values if None.
        levels: levels of each dim of an "fsq" code; num_codes must be their product.
        class_names: names of the classes of the training data, for reference only.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "wasserstein_vq"
    outside_identity = frozenset(
        {"dropout", "gradient_estimator", "codebook_weight", "commitment_weight", "alignment_weight", "entropy_weight"}
        | {"target_scale", "window_size", "num_projections", "num_samples", "affine_interval", "ema_decay"}
        | {"class_names"}
    )

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
        feature_dim: int | None = None,
        num_groups: int = 1,
        scales: list[int] | None = None,
        num_scale_convs: int = 4,
        scale_conv_ratio: float = 0.5,
        quantizer: str = "sliced",
        gradient_estimator: str = "ste",
        codebook_weight: float | None = None,
        commitment_weight: float | None = None,
        alignment_weight: float | None = None,
        entropy_weight: float | None = None,
        target_scale: float = 1.0,
        window_size: int = 65_536,
        num_projections: int = 8,
        num_samples: int = 1_024,
        affine_interval: int = 100,
        ema_decay: float | None = None,
        levels: list[int] | None = None,
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
        self.feature_dim = feature_dim
        self.num_groups = num_groups
        self.scales = None if scales is None else as_list(scales)
        self.num_scale_convs = num_scale_convs
        self.scale_conv_ratio = scale_conv_ratio
        self.quantizer = quantizer
        self.gradient_estimator = gradient_estimator
        self.codebook_weight = codebook_weight
        self.commitment_weight = commitment_weight
        self.alignment_weight = alignment_weight
        self.entropy_weight = entropy_weight
        self.target_scale = target_scale
        self.window_size = window_size
        self.num_projections = num_projections
        self.num_samples = num_samples
        self.affine_interval = affine_interval
        self.ema_decay = ema_decay
        self.levels = None if levels is None else as_list(levels)
        self.class_names = as_list(class_names)
        self._check()  # first: transformers computes with the fields
        super().__init__(**kwargs)

    def _check(self) -> None:
        # Not at the top: these need torch.
        from wvq.tokenizer.quantizers.estimators import GRADIENT_ESTIMATORS
        from wvq.tokenizer.quantizers.registry import check_quantizer

        for field in ("image_size", "in_channels", "patch_size", "base_channels", "num_res_blocks"):
            self._require(field, is_integer(getattr(self, field)), "an integer of at least 1")
        # A file that declares millions of layers would fill memory before its weights could contradict it.
        self._require("num_res_blocks", self.num_res_blocks <= 1_000, "at most 1,000")
        for field in ("num_codes", "code_dim", "num_groups", "window_size", "num_projections", "num_samples"):
            self._require(field, is_integer(getattr(self, field)), "an integer of at least 1")
        self._require("feature_dim", self.feature_dim is None or is_integer(self.feature_dim), "an integer, or null")
        self._require("affine_interval", is_integer(self.affine_interval), "an integer of at least 1")
        self._require("num_codes", self.num_codes < 2**31, "below 2**31, the range of the integers that hold a code")
        divides = self.code_dim % self.num_groups == 0
        self._require("code_dim", divides, f"a multiple of num_groups, which is {self.num_groups}")
        estimators = ", ".join(GRADIENT_ESTIMATORS)
        known = isinstance(self.gradient_estimator, str) and self.gradient_estimator in GRADIENT_ESTIMATORS
        self._require("gradient_estimator", known, f"one of {estimators}")
        self._require("target_scale", is_number(self.target_scale) and self.target_scale > 0, "a number above 0")
        decay = self.ema_decay
        self._require("ema_decay", decay is None or (is_number(decay) and 0 < decay < 1), "in (0, 1), or null")
        levels = self.levels
        integers = isinstance(levels, list) and len(levels) > 0 and all(is_integer(l) and l > 1 for l in levels)
        self._require("levels", levels is None or integers, "a list of integers of at least 2, or null")
        multipliers = self.channel_multipliers
        numbers = isinstance(multipliers, list) and all(is_number(m) and m > 0 for m in multipliers)
        self._require("channel_multipliers", numbers and len(multipliers) > 0, "a list of positive numbers")
        self._require("channel_multipliers", len(multipliers) <= 32, "a list of at most 32 numbers")
        names = isinstance(self.class_names, list) and all(isinstance(name, str) for name in self.class_names)
        self._require("class_names", names, "a list of names")
        self._require("attention", isinstance(self.attention, bool), "true or false")
        self._require("dropout", is_number(self.dropout) and self.dropout < 1, "in [0, 1)")
        for field in ("codebook_weight", "commitment_weight", "alignment_weight", "entropy_weight"):
            value = getattr(self, field)
            self._require(field, value is None or is_number(value), "a number of at least 0, or null")
        wanted = f"a multiple of the downsampling factor {self.downsampling}"
        self._require("image_size", self.image_size % self.downsampling == 0, wanted)
        self._check_scales()
        check_quantizer(self)

    def _check_scales(self) -> None:
        scales, side, ratio = self.scales, self.grid[0], self.scale_conv_ratio
        self._require("num_scale_convs", is_integer(self.num_scale_convs, 0), "an integer of at least 0")
        self._require("scale_conv_ratio", is_number(ratio) and 0 < ratio <= 1, "in (0, 1]")
        if scales is None:
            return
        integers = isinstance(scales, list) and len(scales) > 0 and all(map(is_integer, scales))
        rising = integers and all(coarse < fine for coarse, fine in pairwise(scales))
        self._require("scales", rising, "a rising list of integers of at least 1, or null")
        self._require("scales", scales[-1] == side, f"a list that ends on {side}, the side of the grid of codes")
        self._require("num_groups", self.num_groups == 1, "1 where scales are given, which share one codebook")

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
        """What the codes of a picture stand for (:mod:`wvq.data.layout`), as in ``header.json`` of a cache."""
        return make_layout(self.grid, self.num_groups, self.scales)

    @property
    def sequence_length(self) -> int:
        """Codes of one picture, over all codebooks or scales."""
        return sequence_length(self.code_layout)

    @property
    def channels(self) -> list[int]:
        """Width of each level."""
        return [max(1, round(self.base_channels * multiplier)) for multiplier in self.channel_multipliers]
