"""PSNR and SSIM against scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wvq.tokenizer.picture_metrics import luma, psnr, ssim


def pairs(count=3, height=20, width=27, channels=3, noise=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    originals = torch.randint(0, 256, (count, channels, height, width), generator=generator).float()
    originals = torch.nn.functional.avg_pool2d(originals, 3, stride=1, padding=1).round()
    noisy = originals + noise * torch.randn(originals.shape, generator=generator)
    return noisy.round().clamp(0, 255), originals


def test_psnr_equals_scikit_image():
    pictures, originals = pairs()
    expected = [
        peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=255) for x, y in zip(pictures, originals, strict=True)
    ]
    np.testing.assert_allclose(psnr(pictures, originals), expected, rtol=1e-10)


def test_psnr_reads_8_bit_tensors():
    pictures, originals = pairs()
    assert torch.equal(psnr(pictures.to(torch.uint8), originals.to(torch.uint8)), psnr(pictures, originals))


def test_psnr_of_equal_pictures_is_bounded():
    pictures, _ = pairs()
    assert psnr(pictures, pictures).tolist() == pytest.approx([100.0] * 3)
    assert psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 255.0)).item() == pytest.approx(0.0)


@pytest.mark.parametrize(("height", "width", "channels"), [(11, 11, 3), (20, 27, 3), (32, 32, 1)])
def test_ssim_equals_scikit_image(height, width, channels):
    pictures, originals = pairs(height=height, width=width, channels=channels)
    expected = [
        structural_similarity(
            x.permute(1, 2, 0).double().numpy(),
            y.permute(1, 2, 0).double().numpy(),
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        for x, y in zip(pictures, originals, strict=True)
    ]
    assert 0.1 < min(expected) < max(expected) < 0.99
    np.testing.assert_allclose(ssim(pictures, originals), expected, atol=1e-6)


def test_ssim_of_equal_pictures_is_one():
    pictures, _ = pairs()
    np.testing.assert_allclose(ssim(pictures, pictures), 1.0)
    flat = torch.full((1, 3, 16, 16), 255.0)
    np.testing.assert_allclose(ssim(flat, flat), 1.0)


def test_ssim_refuses_pictures_under_its_window():
    with pytest.raises(ValueError, match="at least 11 x 11 pixels"):
        ssim(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32))


def test_luma_of_known_colours():
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]])
    value = luma(colours.float().view(6, 3, 1, 1))
    assert value.shape == (6, 1, 1, 1)
    assert value.flatten().tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966, 125.929], abs=1e-3)
