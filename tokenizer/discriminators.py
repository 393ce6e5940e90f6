"""Discriminators: PatchGAN over pixels, and heads on the hidden states of a frozen vision model such as DINO.

Both turn pictures into features and features into logits, so that a gradient penalty may be taken at the features.
Shapes: B pictures, M logits a picture.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.models.networks import VisionBackbone
from wvq.tokenizer.recipes import DiscriminatorConfig


class Discriminator(nn.Module):
    """Logits of pictures: high for real ones."""

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Features for :meth:`judge`, from pictures (B, 3, H, W) in [-1, 1]."""
        raise NotImplementedError

    def judge(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits (B, M)."""
        raise NotImplementedError

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (B, M) of pictures (B, 3, H, W) in [-1, 1]."""
        return self.judge(self.features(pictures))


class PatchDiscriminator(Discriminator):
    """PatchGAN: every logit sees a patch (Isola et al. 2017).

    Normalized over groups of channels and not over the batch: a batch norm would mix real and reconstructed pictures,
    and give several processes another result than one.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.smallest = 3 * 2**config.num_layers  # pixels; the last convolution needs them
        widths = [config.base_channels * min(2**level, 8) for level in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, config.num_layers + 1):
            stride = 1 if level == config.num_layers else 2
            layers += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, widths[level]), widths[level]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The pictures themselves.

        Raises:
            ConfigError: pictures too small for the layers.
        """
        if min(pictures.shape[-2:]) < self.smallest:
            raise ConfigError(
                f"discriminator.num_layers is too high for pictures of {min(pictures.shape[-2:])} pixels: it needs at "
                f"least {self.smallest}"
            )
        return [pictures]

    def judge(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.layers(features[0]).flatten(1)


class _Head(nn.Module):
    """Logits of one feature map."""

    def __init__(self, channels: int):
        super().__init__()
        groups = math.gcd(32, channels)
        self.first = spectral_norm(nn.Conv2d(channels, channels, 1))
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.around = spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.last = spectral_norm(nn.Conv2d(channels, 1, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.norm1(self.first(features)), 0.2)
        x = (x + F.leaky_relu(self.norm2(self.around(x)), 0.2)) / math.sqrt(2)
        return self.last(x).flatten(1)


class FeatureDiscriminator(Discriminator):
    """A head on each of several depths of a frozen vision model (Sauer et al. 2023, StyleGAN-T, with DINO).

    Raises:
        CheckpointError, DownloadError: the backbone is not there or is damaged.
        ConfigError: ``backbone_layers`` does not fit it.
    """

    backbone: VisionBackbone

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        try:
            backbone = VisionBackbone(config.backbone, config.backbone_layers)
        except (CheckpointError, ConfigError, DownloadError) as error:
            raise type(error)(f"discriminator.backbone: {error}") from error
        # Not a submodule: checkpoints and gradient averaging need the heads only.
        object.__setattr__(self, "backbone", backbone)
        self.heads = nn.ModuleList(_Head(channels) for channels in backbone.channels)

    def _apply(self, *arguments, **options):
        self.backbone._apply(*arguments, **options)
        return super()._apply(*arguments, **options)

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        return self.backbone(pictures)

    def judge(self, features: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([head(x) for head, x in zip(self.heads, features, strict=True)], dim=1)


def build_discriminator(config: DiscriminatorConfig) -> Discriminator:
    """The discriminator that ``config.network`` names."""
    return {"patchgan": PatchDiscriminator, "dino": FeatureDiscriminator}[config.network](config)
