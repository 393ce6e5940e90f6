"""WassersteinVQModel: encoder and decoder (:mod:`wvq.tokenizer.networks`) around a vector quantizer.

References: van den Oord et al. 2017 (VQ-VAE); arXiv 2506.15078 (alignment).
Shapes: B pictures, C channels, H W pixels, h w grid of codes, D dims of a code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from wvq.data.layout import unflatten_codes
from wvq.errors import ConfigError, DataError, near_match
from wvq.models.pretrained import GIVEN, StrictPreTrainedModel, as_codes, model_hash, require_device, weights_hash
from wvq.precision import at_least_float32
from wvq.settings.size import height_width
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.networks import Decoder, Encoder, Projector, ResidualProjector, ZeroConv2d
from wvq.tokenizer.quantizers.codebook import Codebook
from wvq.tokenizer.quantizers.interface import Quantizer
from wvq.tokenizer.quantizers.registry import build_quantizer


def _at_least_float32(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What moves and casts a tensor as ``fn`` does, but not to a type of fewer bits than float32."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = fn(tensor)
        if moved.dtype in (tensor.dtype, torch.float64):
            return moved
        return tensor.float().to(moved.device)

    return move


PARTS = ("encoder", "quantizer", "decoder", "residual_projector")


@dataclass
class EncoderOutput(ModelOutput):
    """Output of :meth:`WassersteinVQModel.encode`.

    Attributes:
        codes: (B, h, w) int64 in [0, K); (B, h, w, G) of a product quantizer, flat (B, T) of a multi-scale one.
        quantized: (B, D, h, w), the vectors of the codes.
        features: (B, D, h, w), what was quantized, in the space of the codes.
    """

    codes: torch.Tensor = GIVEN
    quantized: torch.Tensor = GIVEN
    features: torch.Tensor = GIVEN


@dataclass
class TokenizerOutput(ModelOutput):
    """Output of a forward pass of :class:`WassersteinVQModel`.

    Attributes:
        reconstruction: (B, C, H, W), not clamped, so that its gradient is never cut.
        codes: (B, h, w) int64 in [0, K); (B, h, w, G) of a product quantizer, flat (B, T) of a multi-scale one.
        quantizer_loss: 0-d, weighted sum of the quantizer's terms.
        losses: each unweighted term of the quantizer by name, detached.
        statistics: quantization_error, utilization, perplexity of this batch, detached; of several scales, each one's
            utilization as well.
        feature_error: 0-d, mean over all elements of (z_q + P(z_q) - z)^2, for features z, their codes' vectors z_q and
            the residual projector P; None without one.
    """

    reconstruction: torch.Tensor = GIVEN
    codes: torch.Tensor = GIVEN
    quantizer_loss: torch.Tensor = GIVEN
    losses: dict[str, torch.Tensor] = GIVEN
    statistics: dict[str, torch.Tensor] = GIVEN
    feature_error: torch.Tensor | None = None


class WassersteinVQModel(StrictPreTrainedModel):
    """Image tokenizer: pictures to a grid of codes and back.

    Example::

        tokenizer = WassersteinVQModel.from_pretrained("runs/openmoji/tokenizer")
        codes = tokenizer.encode(pixel_values).codes
        pictures = tokenizer.decode_codes(codes)
    """

    config: WassersteinVQConfig
    config_class = WassersteinVQConfig
    kind = "tokenizer"
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    cast_when_loaded = True  # the hash of the weights as they were saved is kept
    # Codes are compared in float32 where the network has fewer bits, and in float64 where it has more.
    _keep_in_fp32_modules_strict = ["quantizer"]

    def __init__(self, config: WassersteinVQConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quantizer: Quantizer = build_quantizer(config)
        self.decoder = Decoder(config)
        self.projector = Projector(config) if config.feature_dim is not None else None
        width = config.residual_projector
        self.residual_projector = ResidualProjector(config.code_dim, width) if width is not None else None
        self.frozen: frozenset[str] = frozenset()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Projector | ZeroConv2d):
            module.reset()
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Codebook):
            module.reset_codebook()

    def codebook_parameters(self) -> list[nn.Parameter]:
        """Parameters that belong in the codebook's own optimiser group."""
        return self.quantizer.codebook_parameters()

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution, where the adaptive weight of a GAN is measured."""
        return cast(nn.Parameter, self.decoder.last_layer.weight)  # torch calls it a tensor

    def codes_hash(self) -> str:
        """Hash of the weights and config that make codes of pictures: one for tokenizers that differ in the decoder."""
        return model_hash(self, weights=self._codes_weights_hash())

    def made(self, codes_hash: str) -> bool:
        """Whether codes are this tokenizer's, by the hash in the header of a cache or in the config of a generator.

        Codes that were made before a cast to another type still are: they stand for the same vectors. A picture's codes
        may be others in places after it. Headers and configs of earlier versions hold a hash of the weights alone; it
        is accepted too, and then a later change of the config is not noticed.
        """
        now = self._codes_weights_hash()
        weights = {now, self._before_casts(now)}
        return codes_hash in weights | {model_hash(self, weights=one) for one in weights}

    def _codes_weights_hash(self) -> str:
        return weights_hash(self, without=("decoder.", "projector.out_", "residual_projector."))

    def _before_casts(self, now: str) -> str:
        """The hash of the weights that make codes as they were before any cast, by their hash now.

        Weights that were trained since the cast are known as they are now.
        """
        trained, cast = self.config.cast_hashes or (now, now)
        return trained if cast == now else now

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> WassersteinVQModel:
        """As of torch, behind ``to`` and the like; the quantizer keeps float32 at least, and a cast is recorded."""
        weight = next(self.encoder.parameters())
        casts = fn(torch.empty(0, dtype=weight.dtype, device=weight.device)).dtype != weight.dtype
        trained = self._before_casts(self._codes_weights_hash()) if casts else ""
        for child in self.children() if recurse else ():
            child._apply(_at_least_float32(fn) if child is self.quantizer else fn)
        super()._apply(fn, recurse=False)
        if casts:
            now = self._codes_weights_hash()
            self.config.cast_hashes = None if now == trained else [trained, now]
        return self

    def freeze(self, parts: Iterable[str]) -> None:
        """Leave parts unchanged in training, and keep them in eval mode.

        Args:
            parts: ``encoder``, ``quantizer`` (with its projector), ``decoder`` or ``residual_projector``.

        Raises:
            ConfigError: a part that there is not, or all of them.
        """
        parts, own = frozenset(parts), [part for part in PARTS if getattr(self, part) is not None]
        for part in parts - set(own):
            raise ConfigError(f'freeze: there is no part "{part}"{near_match(part, own)}; one of {", ".join(own)}')
        if parts == set(own):
            raise ConfigError("freeze: with all parts frozen there is nothing to train; leave one out")
        self.frozen = parts
        self.quantizer.freeze("quantizer" in parts)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def _frozen_modules(self) -> list[nn.Module]:
        modules = [getattr(self, part) for part in self.frozen]
        return modules + ([self.projector] if "quantizer" in self.frozen and self.projector else [])

    def train(self, mode: bool = True) -> WassersteinVQModel:
        """Set the mode of all parts but the frozen ones, which stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.train(False)
        return self

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        weight = next(self.encoder.parameters())
        if not pixel_values.is_floating_point():
            raise DataError(f"pixel_values are {pixel_values.dtype}, not floats in [-1, 1]; ImageProcessor makes them")
        require_device("pixel_values", pixel_values, weight.device)
        pixel_values = pixel_values.to(weight.dtype)
        size = self.config.image_size
        expected = (self.config.in_channels, *height_width(size))
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise DataError(
                f"pixel_values must be (B, {', '.join(map(str, expected))}) for this tokenizer, "
                f"got {tuple(pixel_values.shape)}; crop with ImageProcessor or set data.image_size to {size}"
            )
        if self.config.pixel_range == "unit":
            pixel_values = (pixel_values + 1) / 2
        features = rearrange(self.encoder(pixel_values), "b d h w -> b h w d")
        return features if self.projector is None else self.projector.to_codes(features)

    def _restored(self, quantized: torch.Tensor) -> torch.Tensor:
        # What is decoded (B, D, h, w), of quantized features (B, D, h, w).
        return quantized if self.residual_projector is None else quantized + self.residual_projector(quantized)

    def _decoded(self, quantized: torch.Tensor) -> torch.Tensor:
        # quantized: (B, D, h, w), with what a residual projector adds
        if self.projector is not None:
            quantized = rearrange(
                self.projector.from_codes(rearrange(quantized, "b d h w -> b h w d")), "b h w d -> b d h w"
            )
        pictures = self.decoder(quantized)
        return 2 * pictures - 1 if self.config.pixel_range == "unit" else pictures

    def encode(self, pixel_values: torch.Tensor) -> EncoderOutput:
        """Codes of pictures.

        Args:
            pixel_values: (B, C, H, W) in [-1, 1], H and W those of ``config.image_size``; of any floating type.

        Raises:
            DataError: the pictures have another size, are integers, or are on another device.
        """
        features = self._features(pixel_values)
        codes = self.quantizer.encode(features)
        quantized = rearrange(self.quantizer.lookup(codes), "b h w d -> b d h w")
        prepared = self.quantizer.prepare(at_least_float32(features))
        return EncoderOutput(codes, quantized, rearrange(prepared, "b h w d -> b d h w"))

    def decode(self, quantized: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) of quantized features (B, D, h, w), clamped to [-1, 1]."""
        return self._decoded(self._restored(quantized.to(next(self.decoder.parameters()).dtype))).clamp(-1, 1)

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W), clamped to [-1, 1], of codes in [0, K).

        Args:
            codes: as :meth:`encode` gives them, or as the flat sequence (B, T) that a code cache holds; what each place
                of it stands for is in ``config.code_layout``.

        Raises:
            DataError: codes of another shape or device, or no integers; on the CPU also codes outside of [0, K).
        """
        return self.decode(rearrange(self.quantizer.lookup(self._codes_to_decode(codes)), "b h w d -> b d h w"))

    def decode_scales(self, codes: torch.Tensor) -> torch.Tensor:
        """Pictures (B, S, C, H, W) of the coarsest scale alone, of the first two, ..., of all S as ``decode_codes``.

        Without ``config.scales`` there is one scale, S = 1. Codes and errors are those of :meth:`decode_codes`.
        """
        partial = self.quantizer.lookup_scales(self._codes_to_decode(codes))
        return torch.stack([self.decode(rearrange(maps, "b h w d -> b d h w")) for maps in partial], dim=1)

    def decode_first_scales(self, codes: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W), clamped to [-1, 1], of the codes (B, n) of the first scales alone.

        Raises:
            DataError: another number of codes than some of the first scales have, or what :meth:`decode_codes` refuses.
        """
        codes = self._known_codes(codes)
        ends = list(accumulate(map(math.prod, self.config.code_layout["shapes"])))
        if codes.ndim != 2 or codes.shape[1] not in ends:
            raise DataError(f"codes of the first scales must be (B, n), n one of {ends}, got {tuple(codes.shape)}")
        return self.decode(rearrange(self.quantizer.lookup_scales(codes)[-1], "b h w d -> b d h w"))

    def _codes_to_decode(self, codes: torch.Tensor) -> torch.Tensor:
        return unflatten_codes(self._known_codes(codes), self.config.code_layout)

    def _known_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes of any shape, of this device; on the CPU they are checked to be in [0, K)."""
        codes = as_codes(codes, next(self.decoder.parameters()).device)
        if codes.device.type == "cpu" and codes.numel():  # on a GPU the check would wait for it
            lowest, highest = codes.min().item(), codes.max().item()
            if lowest < 0 or highest >= self.config.num_codes:
                raise DataError(f"codes must be in [0, {self.config.num_codes}), got {lowest} to {highest}")
        return codes

    def forward(self, pixel_values: torch.Tensor, update_statistics: bool = False) -> TokenizerOutput:
        """Reconstruct pictures, with all that the training loss needs.

        Args:
            pixel_values: (B, C, H, W) in [-1, 1], of any floating type.
            update_statistics: pass True in training steps only; the alignment then counts the batch in its window, if
                the quantizer is not frozen.

        Raises:
            DataError: the pictures have another size, are integers, or are on another device.
        """
        update_statistics = update_statistics and "quantizer" not in self.frozen
        features = self._features(pixel_values)
        output = self.quantizer(features, update_statistics=update_statistics)
        restored, error = self._restored(rearrange(output.quantized, "b h w d -> b d h w")), None
        if self.residual_projector is not None:
            target = rearrange(self.quantizer.prepare(at_least_float32(features)), "b h w d -> b d h w")
            error = F.mse_loss(at_least_float32(restored), target)
        return TokenizerOutput(
            self._decoded(restored), output.codes, output.loss, output.losses, output.statistics, error
        )


AutoConfig.register(WassersteinVQConfig.model_type, WassersteinVQConfig)
AutoModel.register(WassersteinVQConfig, WassersteinVQModel)
