"""Discriminators: shapes, independence of the pictures of a batch, a frozen backbone that is not part of the module."""

import pytest
import torch

from tests.vision import save_convnext, save_vit
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.tokenizer.adversarial import Adversary, gradient_penalty
from wvq.tokenizer.discriminators import FeatureDiscriminator, PatchDiscriminator, build_discriminator
from wvq.tokenizer.recipes import DiscriminatorConfig


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return {"vit": save_vit(folder / "vit"), "convnext": save_convnext(folder / "convnext")}


def pictures(size: int = 32, count: int = 3, width: int | None = None) -> torch.Tensor:
    return torch.rand(count, 3, size, width or size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def patchgan(**settings):
    torch.manual_seed(0)
    return build_discriminator(DiscriminatorConfig(network="patchgan", **{"base_channels": 8, **settings}))


def on_features(backbone, **settings):
    torch.manual_seed(0)
    return build_discriminator(DiscriminatorConfig(network="dino", backbone=str(backbone), **settings))


# 4 x 4 kernels with padding 1: each strided level halves the side, each of the last two layers takes 1 off.
@pytest.mark.parametrize(
    ("size", "levels", "side"), [(16, 1, 6), (16, 2, 2), (32, 2, 6), (32, 3, 2), (64, 3, 6), (64, 4, 2)]
)
def test_shapes_of_the_patch_discriminator(size, levels, side):
    discriminator = patchgan(num_layers=levels)
    assert isinstance(discriminator, PatchDiscriminator)
    assert discriminator(pictures(size)).shape == (3, side**2)


def test_pictures_that_are_not_square(backbones):
    """The patches of either side count; a backbone takes a square of the size that it was trained at, or any."""
    assert patchgan(num_layers=2)(pictures(32, width=48)).shape == (3, 6 * 10)
    for kind in backbones:
        discriminator = on_features(backbones[kind])
        squeezed = torch.nn.functional.interpolate(
            pictures(16, width=48), (discriminator.backbone.size,) * 2, mode="bilinear", antialias=True
        )
        maps = discriminator.features(pictures(16, width=48))
        assert all(torch.equal(x, y) for x, y in zip(maps, discriminator.features(squeezed), strict=True))
    discriminator = on_features(backbones["convnext"])
    discriminator.backbone.size = None
    shapes = [x.shape[-2:] for x in discriminator.features(pictures(64, width=96))]
    assert shapes == [x.shape[-2:] for x in discriminator.features(pictures(96))]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_pictures_too_small_for_the_levels_are_one_clear_error(levels):
    """Of fewer pixels, the last convolution has nothing to see."""
    discriminator = patchgan(num_layers=levels)
    smallest = 3 * 2**levels
    assert discriminator(pictures(smallest)).shape == (3, 1)
    with pytest.raises(ConfigError, match=rf"^discriminator\.num_layers .* {smallest - 1} pixels.* {smallest}$"):
        discriminator(pictures(smallest - 1))


def test_width_doubles_up_to_eightfold():
    layers = [layer for layer in patchgan(num_layers=5).layers if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [8, 16, 32, 64, 64, 64, 1]


def test_gradient_reaches_every_pixel():
    x = pictures().requires_grad_()
    patchgan(num_layers=2)(x).square().sum().backward()
    assert (x.grad != 0).float().mean() > 0.99


def test_a_patch_logit_sees_its_patch_only_but_for_the_norms():
    discriminator = patchgan(num_layers=2)
    discriminator.layers = torch.nn.Sequential(
        *(layer for layer in discriminator.layers if not isinstance(layer, torch.nn.GroupNorm))
    )
    x = pictures(64, 1).requires_grad_()
    logits = discriminator(x).view(14, 14)
    (gradient,) = torch.autograd.grad(logits[7, 7], x)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert len(rows) == 34
    assert rows[-1] - rows[0] == 33


@pytest.mark.parametrize("kind", ["patchgan", "vit", "convnext"])
def test_logits_of_a_picture_do_not_depend_on_the_others(backbones, kind):
    discriminator = (patchgan(num_layers=2) if kind == "patchgan" else on_features(backbones[kind])).eval()
    joined = discriminator(pictures())
    assert joined.std() > 0
    for index in range(3):
        alone = discriminator(pictures()[index : index + 1])
        torch.testing.assert_close(alone, joined[index : index + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "logits"), [("vit", 4 * 16), ("convnext", 256 + 64 + 16 + 4)])
def test_shapes_of_the_feature_discriminator(backbones, kind, logits):
    discriminator = on_features(backbones[kind])
    assert isinstance(discriminator, FeatureDiscriminator)
    for size in (16, 32):
        x = pictures(size).requires_grad_()
        found = discriminator(x)
        assert found.shape == (3, logits)
        found.square().sum().backward()
        assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_one_head_for_each_chosen_layer(backbones):
    discriminator = on_features(backbones["convnext"], backbone_layers=[1, 3])
    assert len(discriminator.heads) == 2
    assert discriminator(pictures(64)).shape == (3, 256 + 16)


def test_the_backbone_is_no_part_of_the_module(backbones):
    adversary = Adversary(DiscriminatorConfig(network="dino", backbone=str(backbones["vit"])))
    frozen = {id(p) for p in adversary.discriminator.backbone.parameters()}
    assert frozen
    assert not any(id(p) in frozen for p in adversary.parameters())
    assert all(p.requires_grad for p in adversary.parameters())
    averages = {"real_average", "fake_average"}
    assert all(name.startswith("discriminator.heads.") for name in adversary.state_dict().keys() - averages)
    twin = Adversary(adversary.config)
    twin.load_state_dict(adversary.state_dict())
    assert torch.equal(twin.eval().discriminator(pictures()), adversary.eval().discriminator(pictures()))


def test_the_backbone_follows_the_module(backbones):
    adversary = Adversary(DiscriminatorConfig(network="dino", backbone=str(backbones["vit"])))
    adversary.train()
    backbone = adversary.discriminator.backbone
    assert not any(module.training for module in backbone.model.modules())
    adversary.to(torch.float64)
    assert {tensor.dtype for tensor in [*backbone.parameters(), backbone.mean, backbone.std]} == {torch.float64}
    assert adversary.discriminator(pictures().double()).dtype == torch.float64
    adversary.to("meta")
    assert all(p.is_meta for p in backbone.parameters())


def test_the_heads_are_spectrally_normalised(backbones):
    discriminator = on_features(backbones["vit"]).train()
    for _ in range(60):
        discriminator(pictures())
    for head in discriminator.heads:
        for layer in (head.first, head.around, head.last):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_r1_at_the_features_has_second_order_gradients(backbones, kind):
    config = DiscriminatorConfig(network="dino", backbone=str(backbones[kind]), r1_weight=1.0, r1_interval=1)
    torch.manual_seed(0)
    adversary = Adversary(config).double()
    discriminator = adversary.discriminator.eval()  # spectral norms stand still
    features = [x.detach().requires_grad_() for x in discriminator.features(pictures().double())]
    (weight, *_) = (p for p in discriminator.heads[0].around.parameters() if p.ndim == 4)
    value = gradient_penalty(discriminator.judge(features), features)
    (gradient,) = torch.autograd.grad(value, weight)
    with torch.no_grad():
        weight += 1e-4 * gradient / gradient.norm()
    moved = gradient_penalty(discriminator.judge(features), features)
    assert (moved - value).item() == pytest.approx(1e-4 * gradient.norm().item(), rel=0.05)
    loss, terms = adversary.float()(pictures(), pictures().flip(0), penalize=True)
    assert terms["r1"] > 0
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adversary.parameters())


def test_augmentation_always_goes_with_the_frozen_backbone(backbones):
    adversary, seen = Adversary(DiscriminatorConfig(network="dino", backbone=str(backbones["vit"]))), []
    adversary.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    adversary.generator_loss(pictures())
    assert not torch.equal(seen[0], pictures())


def test_a_backbone_that_does_not_load_is_refused(backbones, tmp_path):
    with pytest.raises(ConfigError, match=r"layer 9 of .* is out of range"):
        on_features(backbones["vit"], backbone_layers=[9])
    with pytest.raises(CheckpointError, match="no such vision model folder"):
        on_features(tmp_path / "none")
    with pytest.raises(DownloadError, match=r'"owner/none" is no local folder and could not be fetched'):
        on_features("owner/none")
