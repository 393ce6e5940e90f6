"""What the network can be: padding, attention, the convolutions at its ends, pixel range, the residual projector."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wvq.errors import ConfigError
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.networks import AttentionBlock, Downsample, ResBlock

TINY = {"image_size": 16, "base_channels": 8, "channel_multipliers": [1, 2, 2], "num_res_blocks": 1, "num_codes": 32}
TINY |= {"code_dim": 4, "quantizer": "vanilla"}
OPTIONS = {
    "attention": {"attention": "middle"},
    "downsample": {"downsample": "asymmetric"},
    "end_kernel": {"end_kernel": 3},
    "latent_channels": {"latent_channels": 6},
    "latent_kernel": {"latent_channels": 6, "latent_kernel": 3},
    "pixel_range": {"pixel_range": "unit"},
    "residual_projector": {"residual_projector": 8},
    "l2_normalize": {"l2_normalize": True},
    "similarity": {"similarity": "dot"},
}
ALL = {name: value for fields in OPTIONS.values() for name, value in fields.items()}


def make(**fields):
    torch.manual_seed(0)
    return WassersteinVQModel(WassersteinVQConfig(**{**TINY, **fields})).eval()


def with_and_without_projector():
    """Two tokenizers of the same weights beside the residual projector."""
    model, plain = make(residual_projector=8), make()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    return model, plain


def pictures(count=2):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def layers(part, kind):
    return [layer for layer in part if isinstance(layer, kind)]


# ---- each option


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_pictures_or_codes_and_is_saved(name, tmp_path):
    fields = OPTIONS[name]
    model, plain = make(**fields), make()
    if name == "residual_projector":  # which starts as nothing
        nn.init.normal_(model.residual_projector[-1].weight)
    with torch.no_grad():
        assert not torch.equal(model(pictures()).reconstruction, plain(pictures()).reconstruction)
    model.save_pretrained(tmp_path)
    again = WassersteinVQModel.from_pretrained(tmp_path)
    assert all(getattr(again.config, field) == value for field, value in fields.items())
    with torch.no_grad():
        assert torch.equal(again(pictures()).reconstruction, model(pictures()).reconstruction)
    assert again.codes_hash() == model.codes_hash()


def test_a_network_without_options_is_saved_as_versions_without_them_read_it(tmp_path):
    make().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.keys() & ALL.keys() == {"attention"}
    assert make().config.identity().keys() & ALL.keys() == set()


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "residual_projector"])
def test_codes_are_known_by_the_options_that_make_them(name):
    plain, fields = make(), OPTIONS[name]
    assert make(**fields).config.identity().items() >= fields.items()
    assert make(**fields).codes_hash() != plain.codes_hash()


def test_with_all_options_every_parameter_is_trained():
    model = make(**ALL).train()
    nn.init.normal_(model.residual_projector[-1].weight, std=0.1)  # behind it nothing would be trained yet
    output = model(pictures(), update_statistics=True)
    (output.reconstruction.square().mean() + output.quantizer_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_attention_in_the_middle_alone():
    for attention, counts in ((True, (2, 3)), ("middle", (1, 1)), (False, (0, 0))):
        model = make(attention=attention)
        assert tuple(len(layers(part, AttentionBlock)) for part in (model.encoder, model.decoder)) == counts
        assert [len(layers(part, ResBlock)) for part in (model.encoder, model.decoder)] == [5, 8]


@torch.no_grad()
def test_asymmetric_padding_is_a_row_below_and_a_column_right():
    symmetric, asymmetric = Downsample(2, "symmetric"), Downsample(2, "asymmetric")
    asymmetric.load_state_dict(symmetric.state_dict())
    x = torch.randn(1, 2, 8, 6)
    assert symmetric(x).shape == asymmetric(x).shape == (1, 2, 4, 3)
    wide = F.conv2d(F.pad(x, (1, 1, 1, 1)), symmetric.weight, symmetric.bias)  # of every place
    torch.testing.assert_close(symmetric(x), wide[..., ::2, ::2])
    torch.testing.assert_close(asymmetric(x), wide[..., 1::2, 1::2])


def test_the_convolutions_at_the_ends():
    model = make(end_kernel=3, latent_channels=6, latent_kernel=1)
    encoder, decoder = layers(model.encoder, nn.Conv2d), layers(model.decoder, nn.Conv2d)
    shapes = [tuple(layer.weight.shape) for layer in (*encoder[-2:], *decoder[:2])]
    assert shapes == [(6, 16, 3, 3), (4, 6, 1, 1), (6, 4, 1, 1), (16, 6, 3, 3)]
    assert model.encode(pictures()).features.shape == (2, 4, 4, 4)
    plain = make(end_kernel=3)
    assert tuple(plain.decoder[0].weight.shape) == (16, 4, 3, 3)


@torch.no_grad()
def test_the_network_sees_pixels_in_its_range():
    model = make(pixel_range="unit")
    signed = make()
    signed.load_state_dict(model.state_dict())
    pixels = pictures()
    assert torch.equal(model.encode(pixels).features, signed.encode((pixels + 1) / 2).features)
    codes = model.encode(pixels).codes
    inner = signed.decoder(model.encode(pixels).quantized)
    assert torch.equal(model.decode_codes(codes), (2 * inner - 1).clamp(-1, 1))
    assert torch.equal(model(pixels).reconstruction, 2 * inner - 1)


# ---- the residual projector


@torch.no_grad()
def test_a_residual_projector_starts_as_nothing_and_then_adds_to_the_quantized_features():
    model, plain = with_and_without_projector()
    assert torch.equal(model(pictures()).reconstruction, plain(pictures()).reconstruction)
    nn.init.normal_(model.residual_projector[-1].weight)
    encoded = model.encode(pictures())
    added = encoded.quantized + model.residual_projector(encoded.quantized)
    assert torch.equal(model.decode(encoded.quantized), plain.decode(added))
    assert torch.equal(model.decode_codes(encoded.codes), plain.decode(added))
    assert [tuple(layer.weight.shape[:2]) for layer in layers(model.residual_projector, nn.Conv2d)] == [
        (8, 4),
        *[(8, 8)] * 4,
        (4, 8),
    ]


@torch.no_grad()
def test_codes_do_not_depend_on_the_residual_projector():
    model, plain = with_and_without_projector()
    assert model.codes_hash() == plain.codes_hash()
    assert plain.made(model.codes_hash())
    model.residual_projector[0].weight.add_(1)
    assert model.codes_hash() == plain.codes_hash()


def test_a_residual_projector_is_a_part_that_is_frozen_by_its_name():
    model = make(residual_projector=8)
    model.freeze(["encoder", "quantizer", "decoder"])
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"residual_projector"}
    model.train()
    assert model.residual_projector.training
    assert not model.decoder.training
    with pytest.raises(ConfigError, match="with all parts frozen there is nothing to train"):
        model.freeze(["encoder", "quantizer", "decoder", "residual_projector"])
    with pytest.raises(ConfigError, match=r'no part "residual_projector"; one of encoder, quantizer, decoder$'):
        make().freeze(["residual_projector"])
