"""Every form of a published tokenizer's file, written of a model of ours and read again, and what is refused."""

import re

import pytest
import torch
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from wvq.errors import CheckpointError, ConfigError
from wvq.models.key_map import write_weights
from wvq.models.published import PublishedOptions
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.published.network import entries, unused_convs
from wvq.tokenizer.published.registry import TOKENIZERS, read_tokenizer, write_tokenizer

NETWORK = {"image_size": 24, "base_channels": 32, "channel_multipliers": [1, 1, 2, 3], "num_res_blocks": 3}
NETWORK |= {"downsample": "asymmetric", "end_kernel": 3, "latent_channels": 20, "num_codes": 24, "code_dim": 6}
SCALES = {"scales": [1, 2, 3], "latent_kernel": 3}
OF_FAMILY = {
    "llamagen": {"quantizer": "vanilla", "l2_normalize": True},
    "janus": {"quantizer": "vanilla", "l2_normalize": True},
    "taming": {"quantizer": "vanilla"},
    "ibq": {"quantizer": "vanilla", "similarity": "dot"},
    "var": {"quantizer": "vanilla", **SCALES},
    "wasserstein-var": {"quantizer": "wasserstein", "residual_projector": 64, **SCALES},
}
FORMS = [(family, index) for family, forms in TOKENIZERS.items() for index in range(len(forms))]
FULL = PublishedOptions(image_size=24)


@torch.no_grad()
def randomized(network):
    """A network in which no weight is what another may be too, and whose codes are many."""
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
        else:
            weight.add_(0.1 * torch.randn_like(weight))
    return network.eval()


def make(family, **fields):
    torch.manual_seed(0)
    return randomized(WassersteinVQModel(WassersteinVQConfig(**{**NETWORK, **OF_FAMILY[family], **fields})))


def options_of(model):
    return PublishedOptions(image_size=model.config.image_size, scales=model.config.scales)


def pictures(size=24):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def refused(kind, message, family, state, options=FULL):
    with pytest.raises(kind, match=message) as error:
        read_tokenizer(family, state, "vq.pt", options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("family", "index"), FORMS)
@torch.no_grad()
def test_what_is_written_is_read_to_the_bit(family, index):
    model = make(family)
    form = TOKENIZERS[family][index]
    state = write_weights(model.state_dict(), entries(form, model))
    state |= {name: torch.zeros(1) for name in unused_convs(form, model.config)}
    written = dict(state)
    read = read_tokenizer(family, state, "vq.pt", options_of(model))
    assert state.keys() == set(unused_convs(form, model.config))  # all others were taken out
    assert same(read, model)
    assert not read.training
    assert all(parameter.requires_grad for parameter in read.parameters())
    assert read.config.to_dict() == model.config.to_dict()
    expected, given = model.encode(pictures()), read.encode(pictures())
    assert torch.equal(given.codes, expected.codes)
    assert torch.equal(read.decode_codes(given.codes), model.decode_codes(expected.codes))
    again = write_weights(read.state_dict(), entries(form, read))
    assert again.keys() == written.keys() - state.keys()
    assert all(torch.equal(again[name], written[name]) for name in again)


@pytest.mark.parametrize("family", TOKENIZERS)
def test_what_trains_is_the_model_that_was_read(family):
    model = read_tokenizer(family, write_tokenizer(family, make(family)), "vq.pt", options_of(make(family)))
    output = model.train()(pictures(), update_statistics=True)
    (output.reconstruction.square().mean() + output.quantizer_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize(
    "network",
    [
        {"attention": "middle"},
        {"attention": False},
        {"channel_multipliers": [1], "num_res_blocks": 1},
        {"in_channels": 1, "latent_channels": 6, "latent_kernel": 3},
        {"end_kernel": 1},
    ],
    ids=str,
)
def test_the_network_is_read_from_the_shapes(network):
    model = make("taming", **network)
    read = read_tokenizer("taming", write_tokenizer("taming", model), "vq.pt", FULL)
    assert read.config.to_dict() == model.config.to_dict()
    assert same(read, model)


def test_weights_are_float32_whatever_the_file_holds():
    model = make("taming")
    state = {name: weight.half() for name, weight in write_tokenizer("taming", model).items()}
    read = read_tokenizer("taming", state, "vq.pt", FULL)
    assert {weight.dtype for weight in read.state_dict().values()} == {torch.float32}
    assert same(read, model.half().float()) is False  # of which the codebook was not rounded
    assert torch.equal(read.quantizer.codebook, make("taming").quantizer.codebook.half().float())


def test_the_scales_of_a_file_are_given_or_those_of_the_picture():
    model = make("var")
    for options in (PublishedOptions(scales=[1, 2, 3]), options_of(model)):
        read = read_tokenizer("var", write_tokenizer("var", model), "vq.pt", options)
        assert (read.config.image_size, read.config.scales) == (24, [1, 2, 3])
    # Of six scales each convolution is one's own.
    wide = make("var", image_size=64, scales=[1, 2, 3, 4, 6, 8])
    assert len(wide.quantizer.convs) == 4
    read = read_tokenizer("var", write_tokenizer("var", wide), "vq.pt", options_of(wide))
    assert same(read, wide)


# ---- Janus in transformers


@pytest.fixture
def janus():
    config = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=24,
        latent_channels=20,
        num_patches=4,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=2,
    )
    torch.manual_seed(0)
    return randomized(JanusVQVAE(config))


@pytest.mark.parametrize("prefix", ["", "vqmodel.", "model.vqmodel."])
@torch.no_grad()
def test_janus_of_transformers_gives_the_same_features_and_pictures(janus, prefix):
    """Its encode compares codes at their lengths, unlike the authors' code and ours; its decode normalises them."""
    state = {prefix + name: weight for name, weight in janus.state_dict().items()}
    if prefix:
        state["lm_head.weight"] = state["model.vision_model.x"] = torch.zeros(3)
    model = read_tokenizer("janus", state, "janus", PublishedOptions(image_size=16))
    pixels = pictures(16)
    features = janus.quant_conv(janus.encoder(pixels))
    torch.testing.assert_close(model.encoder(pixels), features)
    encoded = model.encode(pixels)
    similarities = torch.einsum(
        "bdhw,kd->bhwk", features, torch.nn.functional.normalize(janus.quantize.embedding.weight)
    )
    assert torch.equal(encoded.codes, similarities.argmax(-1))
    assert len(encoded.codes.unique()) > 3
    torch.testing.assert_close(
        model.decode_codes(encoded.codes), janus.decode(encoded.codes.flatten(1)).clamp(-1, 1), rtol=1e-4, atol=1e-4
    )
    assert same(
        model, read_tokenizer("janus", write_tokenizer("janus", model), "janus", PublishedOptions(image_size=16))
    )
    written = write_tokenizer("janus", model)
    assert written.keys() == janus.state_dict().keys()
    assert all(torch.equal(weight, written[name]) for name, weight in janus.state_dict().items())


# ---- what lies beside the weights


def test_the_average_is_read_where_a_file_of_ibq_has_one():
    trained, averaged = make("ibq"), make("ibq", dropout=0.1)
    for weight in averaged.parameters():
        weight.data.mul_(2)
    state = write_tokenizer("ibq", trained)
    state |= {f"model_ema.{name.replace('.', '')}": w for name, w in write_tokenizer("ibq", averaged).items()}
    state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(5)}
    state |= {
        "loss.discriminator.main.0.weight": torch.zeros(2),
        "model_ema.lossdiscriminatormain0weight": torch.zeros(2),
    }
    assert same(read_tokenizer("ibq", dict(state), "last.ckpt", FULL), averaged)
    del state["model_ema.quant_convbias"]
    refused(CheckpointError, r"vq.pt lacks the weight model_ema.quant_convbias", "ibq", state)


BESIDE = {
    "llamagen": ["quantize.codebook_used"],
    "janus": ["gen_vision_model.quantize.codebook_used", "language_model.model.norm.weight"],
    "taming": ["loss.logvar", "loss.perceptual_loss.net.slice1.0.weight"],
    "ibq": ["loss.discriminator.main.0.weight"],
    "var": ["quantize.ema_vocab_hit_SV"],
    "wasserstein-var": ["quantizer.queue.queue", "quantizer.queue.queue_ptr"],
}


@pytest.mark.parametrize("family", TOKENIZERS)
def test_what_a_file_holds_beside_is_left_out_by_name_and_nothing_else(family):
    model, form = make(family), TOKENIZERS[family][0]
    if family == "ibq":
        form = TOKENIZERS[family][-1]
    state = write_weights(model.state_dict(), entries(form, model))
    state |= {name: torch.zeros(1) for name in unused_convs(form, model.config)}
    read = read_tokenizer(family, state | dict.fromkeys(BESIDE[family], torch.zeros(2)), "vq.pt", options_of(model))
    assert same(read, model)
    unknown = "gen_vision_model.more" if family == "janus" else "encoder.more"
    refused(
        CheckpointError, rf"vq.pt holds {unknown}, which", family, state | {unknown: torch.zeros(2)}, options_of(model)
    )


# ---- what is refused


def test_options_that_shapes_do_not_say_are_asked_for():
    state = write_tokenizer("taming", make("taming"))
    refused(
        ConfigError,
        "vq.pt does not say the size of its pictures; give --image_size",
        "taming",
        state,
        PublishedOptions(),
    )
    refused(
        ConfigError,
        "scales: the tokenizer in vq.pt has one scale",
        "taming",
        state,
        PublishedOptions(24, scales=[1, 3]),
    )
    state = write_tokenizer("var", make("var"))
    for options in (PublishedOptions(), FULL):
        refused(ConfigError, r"vq.pt does not say the sides of its scales; give --scales", "var", state, options)
    refused(ConfigError, "scales must be a list that ends on 3", "var", state, PublishedOptions(24, scales=[1, 2]))
    refused(ConfigError, "image_size must be a multiple of", "var", state, PublishedOptions(23, scales=[1, 2, 3]))


def test_an_unknown_family_is_refused():
    refused(
        ConfigError,
        r'no published tokenizer "tamming" \(did you mean "taming"\?\); one of llamagen, janus',
        "tamming",
        {},
    )
    with pytest.raises(ConfigError, match='no published tokenizer "rar"'):
        write_tokenizer("rar", make("taming"))


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_file_of_another_family_is_refused(family):
    others = {"taming": "llamagen", "ibq": "var", "janus": "wasserstein-var"}
    state = write_tokenizer(others.get(family, "taming"), make(others.get(family, "taming")))
    options = PublishedOptions(24, scales=[1, 2, 3]) if "scales" in OF_FAMILY[family] else FULL
    with pytest.raises((CheckpointError, ConfigError), match=r"vq\.pt") as error:
        read_tokenizer(family, state, "vq.pt", options)
    assert "\n" not in str(error.value)


def test_attention_elsewhere_is_refused():
    state = write_tokenizer("taming", make("taming"))
    lowest = {name: weight for name, weight in state.items() if ".3.attn." in name}
    high = {name.replace(".3.attn.", ".1.attn."): weight for name, weight in lowest.items()}
    message = "vq.pt has attention elsewhere than at the lowest level and in the middle; such a network is not known"
    refused(CheckpointError, message, "taming", state | high)
    encoder_alone = {name: weight for name, weight in state.items() if not re.match(r"decoder\.up\.3\.attn", name)}
    refused(CheckpointError, message, "taming", encoder_alone)


def damaged(change):
    state = write_tokenizer("taming", make("taming"))
    change(state)
    return state


DAMAGES = {
    "no weight of a block": (
        lambda s: s.pop("decoder.up.1.block.2.conv2.bias"),
        "lacks the weight decoder.up.1.block.2.conv2",
    ),
    "no codebook": (lambda s: s.pop("quantize.embedding.weight"), "is no tokenizer of the family taming"),
    "no first convolution": (lambda s: s.pop("encoder.conv_in.weight"), "lacks the weight encoder.conv_in.weight"),
    "other dims": (
        lambda s: s.update({"quant_conv.weight": torch.zeros(6, 20)}),
        r"quant_conv.weight is \(6, 20\), not of 4 dims",
    ),
    "empty": (lambda s: s.update({"quantize.embedding.weight": torch.zeros(0, 6)}), r"embedding.weight is \(0, 6\)"),
    "another width": (
        lambda s: s.update({"decoder.mid.block_1.conv1.bias": torch.zeros(5)}),
        r"decoder.mid.block_1.conv1.bias makes \(5,\) of decoder.2.conv1.bias",
    ),
    "a wider first level": (
        lambda s: s.update({"encoder.down.0.block.0.conv1.weight": torch.zeros(64, 32, 3, 3)}),
        "the first level of the encoder has 64 channels behind a convolution to 32",
    ),
    "an even kernel": (
        lambda s: s.update({"encoder.conv_out.weight": torch.zeros(20, 96, 4, 4)}),
        "end_kernel must be one of 1, 3, got 4",
    ),
    "NaN": (lambda s: s["quant_conv.bias"].fill_(torch.nan), "quant_conv.bias holds NaN or infinite values"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_one_clear_line(name):
    change, message = DAMAGES[name]
    refused((CheckpointError, ConfigError), f"vq.pt.*{message}", "taming", damaged(change))


UNLIKE = [
    ("taming", {"downsample": "symmetric"}, "a taming tokenizer has downsample asymmetric, and this one symmetric"),
    ("taming", {"l2_normalize": True}, "has l2_normalize False, and this one True"),
    ("llamagen", {"l2_normalize": False}, "a llamagen tokenizer has l2_normalize True, and this one False"),
    ("taming", {"scales": [1, 3]}, "has no scales, other than this one"),
    ("var", {"scales": None}, "a var tokenizer has scales, other than this one"),
    ("var", {"scale_conv_table": "even"}, "has scale_conv_table var, and this one even"),
    ("var", {"residual_projector": 4}, "has no residual_projector, other than this one"),
    ("taming", {"latent_channels": None}, "has latent_channels, other than this one"),
    ("taming", {"base_channels": 16}, "has widths that are multiples of 32, and this one has 16"),
    ("wasserstein-var", {"residual_projector": 12}, "has widths that are multiples of 32, and this one has 12"),
    ("taming", {"patch_size": 3}, "has patch_size 1, and this one 3"),
    (
        "taming",
        {"quantizer": "linear"},
        "no taming tokenizer can be made of this one: quantizer.map.bias is not in both",
    ),
    ("taming", {"quantizer": "lfq", "code_dim": 5, "num_codes": 32}, "quantizer.codebook is not in both"),
]


@pytest.mark.parametrize(("family", "fields", "message"), UNLIKE, ids=str)
def test_a_model_that_no_file_of_a_family_can_hold_is_not_written(family, fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        write_tokenizer(family, make(family, **fields))
    assert "\n" not in str(error.value)
