"""Encoder, decoder and projectors of the tokenizer, read top to bottom.

References: Esser et al. 2021 (the U-shaped network); arXiv 2506.15078 and its authors' code (the residual projector).
Shapes: B pictures, C channels, H W pixels, h w grid of codes, F features, D dims of a code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from wvq.precision import no_float16
from wvq.tokenizer.configuration import WassersteinVQConfig


def norm(channels: int) -> nn.GroupNorm:
    """Group norm over up to 32 groups."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResBlock(GradientCheckpointingLayer):
    """Two convolutions behind norms, added to the input: (B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = norm(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class AttentionBlock(GradientCheckpointingLayer):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Conv2d):
    """Halves the sides: (B, C, H, W) -> (B, C, H / 2, W / 2).

    Args:
        channels: C.
        padding: ``symmetric``: a pixel on all sides; ``asymmetric``: a row below and a column right.
    """

    def __init__(self, channels: int, padding: str):
        super().__init__(channels, channels, 3, stride=2, padding=1 if padding == "symmetric" else 0)
        self.asymmetric = padding == "asymmetric"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2)."""
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Conv2d):
    """Doubles the sides: (B, C, H, W) -> (B, C, 2 H, 2 W)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """A convolution that leaves the sides as they are, by a kernel of odd size."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)


def middle(channels: int, config: WassersteinVQConfig) -> list[nn.Module]:
    """The blocks at the lowest resolution, between encoder or decoder levels and their end."""
    attention = [AttentionBlock(channels)] if config.attention else []
    return [ResBlock(channels, channels, config.dropout), *attention, ResBlock(channels, channels, config.dropout)]


def level(in_channels: int, channels: int, blocks: int, lowest: bool, config: WassersteinVQConfig) -> list[nn.Module]:
    """The residual blocks of one resolution, with attention at the lowest."""
    layers: list[nn.Module] = []
    for index in range(blocks):
        layers.append(ResBlock(in_channels if index == 0 else channels, channels, config.dropout))
        if lowest and config.attention is True:
            layers.append(AttentionBlock(channels))
    return layers


class Encoder(nn.Sequential):
    """Pictures (B, C, H, W) in ``config.pixel_range`` -> features (B, F, h, w), F = ``config.encoder_dim``."""

    def __init__(self, config: WassersteinVQConfig):
        widths = config.channels
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch_size)] if config.patch_size > 1 else []
        layers.append(nn.Conv2d(config.in_channels * config.patch_size**2, widths[0], 3, padding=1))
        for index, width in enumerate(widths):
            lowest = index == len(widths) - 1
            layers += level(widths[max(index - 1, 0)], width, config.num_res_blocks, lowest, config)
            if not lowest:
                layers.append(Downsample(width, config.downsample))
        latent = config.latent_channels or config.encoder_dim
        layers += [*middle(widths[-1], config), norm(widths[-1]), nn.SiLU()]
        layers.append(conv(widths[-1], latent, config.end_kernel))
        if config.latent_channels:
            layers.append(conv(latent, config.encoder_dim, config.latent_kernel))
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Quantized features (B, F, h, w) -> pictures (B, C, H, W) in ``config.pixel_range``, not clamped."""

    _compiled: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __init__(self, config: WassersteinVQConfig):
        widths = config.channels[::-1]
        latent = config.latent_channels or config.encoder_dim
        layers: list[nn.Module] = []
        if config.latent_channels:
            layers.append(conv(config.encoder_dim, latent, config.latent_kernel))
        layers += [conv(latent, widths[0], config.end_kernel), *middle(widths[0], config)]
        for index, width in enumerate(widths):
            layers += level(widths[max(index - 1, 0)], width, config.num_res_blocks + 1, index == 0, config)
            if index < len(widths) - 1:
                layers.append(Upsample(width))
        out_channels = config.in_channels * config.patch_size**2
        layers += [norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], out_channels, 3, padding=1)]
        if config.patch_size > 1:
            layers.append(nn.PixelShuffle(config.patch_size))
        super().__init__(*layers)
        self.last = max(index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))

    @property
    def last_layer(self) -> nn.Conv2d:
        """The last convolution; what follows it has no weights."""
        return cast(nn.Conv2d, self[self.last])  # a Sequential does not know what it holds

    def compile(self, *args, **kwargs) -> None:
        """Compile all but the last convolution; arguments as for torch.compile.

        The adaptive weight of a GAN takes that layer's gradient on its own, before the backward pass of the step: a
        compiled part runs backward once only.
        """
        self._compiled = torch.compile(self._body, *args, **kwargs)

    def _body(self, x: torch.Tensor) -> torch.Tensor:
        for layer in list(self)[: self.last]:
            x = layer(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W), not clamped, of quantized features (B, F, h, w)."""
        x = (self._compiled or self._body)(x)
        with no_float16(x):  # the gradient of the last convolution is a sum over all pixels of a batch
            if not torch.is_autocast_enabled(x.device.type):
                x = x.to(self.last_layer.weight.dtype)
            for layer in list(self)[self.last :]:
                x = layer(x)
        return x


class Projector(nn.Module):
    """Linear maps from the encoder's F dims to the D of a code, and back to the decoder's F.

    They start as an orthogonal map and its inverse (D >= F), or as the projection on D random directions (D < F).
    """

    def __init__(self, config: WassersteinVQConfig):
        super().__init__()
        dim, code_dim = config.encoder_dim, config.code_dim
        # Direct parameters, not layers: _init_weights is called only for modules that have some.
        self.in_weight, self.in_bias = nn.Parameter(torch.empty(code_dim, dim)), nn.Parameter(torch.empty(code_dim))
        self.out_weight, self.out_bias = nn.Parameter(torch.empty(dim, code_dim)), nn.Parameter(torch.empty(dim))

    def reset(self) -> None:
        """Orthogonal weights, each direction the inverse of the other as far as the widths allow."""
        init.orthogonal_(self.in_weight)
        init.copy_(self.out_weight, self.in_weight.T)
        init.zeros_(self.in_bias)
        init.zeros_(self.out_bias)

    def to_codes(self, features: torch.Tensor) -> torch.Tensor:
        """(..., F) -> (..., D)."""
        return F.linear(features, self.in_weight, self.in_bias)

    def from_codes(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., F)."""
        return F.linear(vectors, self.out_weight, self.out_bias)


class ZeroConv2d(nn.Conv2d):
    """A 3 x 3 convolution that gives 0 until it is trained."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def reset(self) -> None:
        """Set weight and bias to 0."""
        for parameter in self.parameters():
            init.zeros_(parameter)


class ResidualProjector(nn.Sequential):
    """Six convolutions that estimate what quantizing took from the features: (B, D, h, w) -> (B, D, h, w).

    Their output is added to the quantized features before these are decoded; it starts as 0. Source: the authors' code
    of arXiv 2506.15078.

    Args:
        dim: dims D of the features.
        width: channels between the convolutions.
    """

    def __init__(self, dim: int, width: int):
        layers: list[nn.Module] = []
        for index in range(5):
            layers += [conv(width if index else dim, width, 3), norm(width), nn.SiLU()]
        super().__init__(*layers, ZeroConv2d(width, dim))
