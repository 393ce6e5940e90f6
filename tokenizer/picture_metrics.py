"""How close a decoded picture is to the one it was made from: PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# ITU-R BT.601: Y = 16 + 65.481 R + 128.553 G + 24.966 B for R, G, B in [0, 1].
_LUMA = (65.481, 128.553, 24.966)


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """Y of the studio-range YCbCr (BT.601), in [16, 235]; pixels (B, 3, H, W) in [0, 255] -> (B, 1, H, W)."""
    weights = pixels.new_tensor(_LUMA).view(1, 3, 1, 1)
    return 16 + (pixels * weights).sum(1, keepdim=True) / 255


def psnr(pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture in dB, peak 255; (B, C, H, W) in [0, 255] -> (B,), at most 100 dB."""
    error = (pictures.double() - references.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp_min(255**2 * 1e-10))


def ssim(pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each picture, mean over channels and the positions where the whole window fits.

    Gaussian window of 11 x 11 with sigma 1.5, K1 = .01, K2 = .03, range 255, biased moments: Wang et al. 2004.

    Args:
        pictures, references: (B, C, H, W) in [0, 255], H and W at least 11.

    Returns:
        (B,) in [-1, 1].
    """
    if min(pictures.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, got {tuple(pictures.shape[-2:])}")
    x, y = pictures.double(), references.double()
    channels = x.shape[1]
    offsets = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()
    kernel = torch.outer(window, window).expand(channels, 1, 11, 11)

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, kernel, groups=channels)

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    value = value / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return value.flatten(1).mean(1)
