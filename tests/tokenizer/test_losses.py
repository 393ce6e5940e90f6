"""Reconstruction losses: values, weights, a frozen perceptual network that passes gradients."""

import importlib.util

import pytest
import torch
from torch import nn

from wvq.errors import ConfigError, DownloadError
from wvq.settings import LossConfig
from wvq.tokenizer import losses
from wvq.tokenizer.losses import FeatureDistance, ReconstructionLoss


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1, torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1


def test_weighted_sum_of_means():
    x, y = pair()
    total, terms = ReconstructionLoss(LossConfig(l1_weight=0.5, l2_weight=2.0))(x, y)
    l1, l2 = (x - y).abs().mean(), (x - y).square().mean()
    torch.testing.assert_close(total, 0.5 * l1 + 2 * l2)
    torch.testing.assert_close(terms, {"l1": l1, "l2": l2})


def test_terms_without_weight_are_left_out():
    x, y = pair()
    total, terms = ReconstructionLoss(LossConfig(l1_weight=0.0, l2_weight=1.0))(x, y)
    assert set(terms) == {"l2"}
    torch.testing.assert_close(total, terms["l2"])


def test_terms_are_detached_and_the_sum_is_not():
    x, y = pair()
    total, terms = ReconstructionLoss(LossConfig(l1_weight=1.0))(x.requires_grad_(), y)
    assert total.requires_grad
    assert not any(value.requires_grad for value in terms.values())


def test_low_precision_reconstructions_are_compared_in_float32():
    x, y = pair()
    total, _ = ReconstructionLoss(LossConfig())(x.bfloat16(), y)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, (x.bfloat16().float() - y).square().mean())


def test_no_loss_at_all_is_an_error():
    with pytest.raises(ConfigError, match="all weights are 0"):
        ReconstructionLoss(LossConfig(l2_weight=0.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"l1_weight": -1.0}, "loss.l1_weight must be at least 0"), ({"perceptual_network": "vgg"}, "one of lpips")],
)
def test_bad_settings_name_their_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        ReconstructionLoss(LossConfig(**fields))


def small_distance():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2))
    return FeatureDistance(lambda pictures: [network[:3](pictures), network(pictures)], network)


def test_feature_distance_is_frozen_and_stays_in_eval_mode():
    distance = small_distance()
    nn.Sequential(distance).train()
    assert not any(p.requires_grad for p in distance.parameters())
    assert not any(module.training for module in distance.modules())


def test_feature_distance_passes_gradients_to_the_pictures_only():
    x, y = pair()
    distance = small_distance()
    distance(x.requires_grad_(), y.requires_grad_()).backward()
    assert x.grad.abs().max() > 0
    assert y.grad is None


def test_feature_distance_value():
    x, y = pair()
    distance = small_distance()
    assert distance(x, x).item() == 0
    values = []
    for a, b in zip(distance.layers(x), distance.layers(y), strict=True):
        a, b = (f / f.norm(dim=1, keepdim=True).clamp_min(1e-12) for f in (a, b))
        values.append((a - b).square().sum(1).mean())
    torch.testing.assert_close(distance(x, y), sum(values) / 2)


def test_perceptual_term_is_weighted_and_outside_autocast(monkeypatch):
    monkeypatch.setitem(losses.PERCEPTUAL, "lpips", small_distance)
    x, y = pair()
    loss = ReconstructionLoss(LossConfig(l2_weight=0.0, perceptual_weight=0.25))
    expected = 0.25 * small_distance()(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        total, terms = loss(x, y)
    assert torch.equal(total, expected)
    assert set(terms) == {"perceptual"}


def test_lpips_without_its_package_or_backbone_is_one_clear_error(monkeypatch):
    config = LossConfig(perceptual_weight=1.0)
    if importlib.util.find_spec("lpips") is None:
        with pytest.raises(ConfigError, match=r'pip install "wvq\[lpips\]"'):
            ReconstructionLoss(config)
        return

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("lpips.LPIPS", offline)
    with pytest.raises(DownloadError, match=r"could not be fetched \(no network\).*efficientnet_lite0"):
        ReconstructionLoss(config)
