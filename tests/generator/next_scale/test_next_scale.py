"""The next-scale generator: what each token sees, cached passes, sampling, conditions, saving."""

import pytest
import torch
import torch.nn.functional as F

from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.filters import FREE
from wvq.generator.base.guidance import scale_guidance
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.generator.next_scale.modeling import NextScaleTransformer
from wvq.generator.sampling import sample_codes

SCALES, SIZES = [1, 2, 4], [1, 4, 16]
T, K = sum(SIZES), 32
SMALL = {"num_codes": K, "grid": [4, 4], "scales": SCALES, "code_dim": 6, "hidden_size": 32, "num_layers": 2}
SMALL |= {"num_heads": 2, "dropout": 0.0, "token_dropout": 0.0}
TEXT = {"text_dim": 8, "text_length": 5}
KINDS = {
    "adaptive": {"num_classes": 3},
    "adaptive text": {"num_classes": 3, **TEXT},
    "text alone": TEXT,
    "shared": {"num_classes": 3, "conditioning": "adaptive_shared"},
    "prefix": {"num_classes": 3, "conditioning": "prefix", "condition_bias": True, **TEXT},
    "prefix features": {"conditioning": "prefix", "null_text": "features", "text_projection": "mlp", **TEXT},
    "prefix class": {"num_classes": 3, "conditioning": "prefix"},
    "none": {"conditioning": "prefix"},
    "var": {
        "num_classes": 3,
        "norm": "layer",
        "feed_forward": "gelu",
        "qk_norm": "l2",
        "attention_bias": True,
    },
    "tall": {"num_classes": 3, "grid": [6, 4]},
    "without convolutions": {"num_classes": 3, "num_scale_convs": 0},
}


def make(kind="adaptive", **fields):
    torch.manual_seed(0)
    model = NextScaleTransformer(NextScaleTransformerConfig(**SMALL | KINDS[kind] | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing starts at zero: each part counts
            parameter.add_(torch.randn_like(parameter) * 0.2)
    sizes = {"codebook": 1.0, "conv_weight": 0.1, "conv_bias": 1.0}
    model.take_quantizer({name: torch.randn_like(getattr(model, name)) * size for name, size in sizes.items()})
    return model


def condition(model, count=3):
    generator, config = torch.Generator().manual_seed(5), model.config
    labels = torch.arange(count) % 3 if config.num_classes else None
    if not config.text_dim:
        return Condition(labels)
    lengths = torch.tensor([[2], [0], [5]])[:count]
    mask = torch.arange(5) >= 5 - lengths  # a text without tokens is null
    return Condition(labels, torch.randn(count, 5, 8, generator=generator), mask)


def codes_of(model, count=3, seed=1):
    shape = count, model.config.sequence_length
    return torch.randint(0, K, shape, generator=torch.Generator().manual_seed(seed))


def logits(model, codes, given):
    with torch.no_grad():
        return model(codes, **given.named()).logits


@pytest.fixture(params=KINDS)
def model(request):
    return make(request.param)


# ---- teacher forcing


def test_a_code_is_predicted_from_coarser_scales_alone(model):
    codes, given = codes_of(model), condition(model)
    plain = logits(model, codes, given)
    sizes = [rows * columns for rows, columns in model.config.scale_shapes]
    for scale, size in enumerate(sizes):
        start = sum(sizes[:scale])
        other = codes.clone()
        other[:, start : start + size] = (other[:, start : start + size] + 1) % K
        changed = (logits(model, other, given) - plain).abs().amax((0, 2)) > 1e-6
        assert not changed[: start + size].any()
        assert changed[start + size :].all()


def test_the_loss_is_the_mean_over_all_codes(model):
    codes, given = codes_of(model), condition(model)
    out = model(codes, given.class_labels, given.text_features, given.text_mask)
    chosen = out.logits.log_softmax(-1).gather(-1, codes[..., None])
    torch.testing.assert_close(out.loss, -chosen.mean())
    out.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_conditions_matter_and_padding_does_not(model):
    codes, given = codes_of(model), condition(model)
    plain = logits(model, codes, given)
    if model.config.num_classes or model.config.text_dim:
        assert (logits(model, codes, given.null()) - plain).abs().max() > 1e-3
    if given.text_mask is not None:
        features = given.text_features.masked_fill(~given.text_mask[..., None], 7.0)
        other = Condition(given.class_labels, features, given.text_mask)
        torch.testing.assert_close(logits(model, codes, other), plain)


def test_inputs_are_the_features_of_coarser_scales_averaged_down():
    model = make(num_scale_convs=0)
    codes = codes_of(model, 1)
    inputs = model.scale_inputs(codes)
    first = model.codebook[codes[0, 0]]
    torch.testing.assert_close(inputs[0, :4], first.expand(4, -1))
    second = model.codebook[codes[0, 1:5]].view(1, 2, 2, 6).permute(0, 3, 1, 2)
    up = torch.nn.functional.interpolate(second, size=(4, 4), mode="bicubic")
    expected = (first[:, None, None] + up[0]).permute(1, 2, 0).reshape(16, 6)
    torch.testing.assert_close(inputs[0, 4:], expected)


# ---- sampling


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 3.0, "guidance_schedule": "linear", "top_k": 7}])
def test_a_pass_a_scale_equals_teacher_forcing(model, settings):
    """The likeliest codes of the guided teacher-forced logits of what was drawn are what was drawn."""
    settings, given = SamplingSettings(temperature=0, **settings), condition(model)
    codes = sample_codes(model, given, [0, 1, 2], settings)
    conditional, null = logits(model, codes, given), logits(model, codes, given.null())
    sizes = torch.tensor([rows * columns for rows, columns in model.config.scale_shapes])
    scales = torch.tensor(scale_guidance(settings, 3)).repeat_interleave(sizes)[:, None]
    assert torch.equal(torch.lerp(null, conditional, scales).argmax(-1), codes)


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(model):
    settings, given = SamplingSettings(guidance_scale=2.0), condition(model)
    codes = sample_codes(model, given, [4, 5, 6], settings)
    assert len({tuple(row) for row in codes.tolist()}) == 3
    for number in range(3):
        alone = sample_codes(model, given.rows([number]), [4 + number], settings)
        assert torch.equal(alone[0], codes[number])
    deterministic = sample_codes(model, given, [4, 5, 6], settings.updated(deterministic=True))
    assert deterministic.shape == codes.shape


def test_codes_follow_the_distribution():
    model = make()
    given = Condition(torch.zeros(4_000, dtype=torch.int64))
    codes = sample_codes(model, given, list(range(4_000)), SamplingSettings())
    drawn = torch.bincount(codes[:, 0], minlength=K) / 4_000
    expected = logits(model, codes[:1], Condition(torch.zeros(1, dtype=torch.int64)))[0, 0].softmax(-1)
    assert (drawn - expected).abs().max() < 0.03


def test_given_codes_stay_and_are_read(model):
    settings, given = SamplingSettings(), condition(model)
    first = codes_of(model)
    sizes = [rows * columns for rows, columns in model.config.scale_shapes]
    fixed = first.clone()
    fixed[:, sizes[0] + sizes[1] :] = FREE  # all but the finest scale
    codes = sample_codes(model, given, [0, 1, 2], settings, fixed=fixed)
    assert torch.equal(codes[:, : sizes[0] + sizes[1]], first[:, : sizes[0] + sizes[1]])
    free = sample_codes(model, given, [0, 1, 2], settings)
    assert not torch.equal(codes[:, sizes[0] + sizes[1] :], free[:, sizes[0] + sizes[1] :])
    assert torch.equal(sample_codes(model, given, [0, 1, 2], settings, fixed=free), free)
    redrawn = free.clone()
    redrawn[:, -3:] = FREE
    assert torch.equal(sample_codes(model, given, [0, 1, 2], settings, fixed=redrawn), free)


def test_previews_are_the_codes_of_all_scales_so_far():
    model, seen = make(), []
    codes = sample_codes(
        model, condition(model), [0, 1, 2], SamplingSettings(), callback=lambda *step: seen.append(step)
    )
    assert [number for number, _ in seen] == [0, 1, 2]
    assert [part.shape[1] for _, part in seen] == [1, 5, 21]
    assert all(torch.equal(part, codes[:, : part.shape[1]]) for _, part in seen)


@pytest.mark.parametrize("kind", ["adaptive", "shared"])
def test_a_picture_needs_its_modulations_once_and_no_masks(kind, monkeypatch):
    model, masks, made = make(kind), [], []
    attention = F.scaled_dot_product_attention

    def seen(*tensors, attn_mask, **options):
        masks.append(attn_mask)
        return attention(*tensors, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    layers = [model.shared_modulation] if kind == "shared" else [block.modulation for block in model.blocks]
    for layer in layers:
        layer.register_forward_hook(lambda *call: made.append(call))
    sample_codes(model, condition(model), [0, 1, 2], SamplingSettings(guidance_scale=2.0))
    assert len(made) == len(layers)
    assert masks == [None] * 6  # two layers, three scales


def test_guidance_reaches_its_scale_at_the_last_pass():
    ramp = SamplingSettings(guidance_scale=2.5, guidance_schedule="linear")
    assert scale_guidance(ramp, 4) == pytest.approx([1.0, 1.5, 2.0, 2.5])
    assert scale_guidance(ramp, 1) == [1.0]
    inside = SamplingSettings(guidance_scale=2.0, guidance_interval=(0.25, 0.75))
    assert scale_guidance(inside, 4) == [1.0, 2.0, 2.0, 1.0]


# ---- errors, saving


def test_what_does_not_fit_is_refused():
    model = make()
    with pytest.raises(ConfigError, match="window"):
        sample_codes(model, condition(model), [0, 1, 2], SamplingSettings(window=4))
    with pytest.raises(ConfigError, match="passes is for generators of grid codes"):
        sample_codes(model, condition(model), [0, 1, 2], SamplingSettings(passes=4))
    with pytest.raises(ConfigError, match="passes is for generators of grid codes"):
        sample_codes(model, condition(model), [0, 1, 2], SamplingSettings(passes=4))
    with pytest.raises(ConfigError, match="fixed codes must be integers"):
        sample_codes(model, condition(model), [0, 1, 2], SamplingSettings(), fixed=torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(
        ConfigError, match=r"must hold 21 a picture \(multi-scale .* of the sides 1, 2, 4 one after the other\)\), got"
    ):
        model(torch.zeros(1, 20, dtype=torch.int64))
    with pytest.raises(ConfigError, match="codebook"):
        model.take_quantizer({"codebook": torch.zeros(K, 5)})
    for scales in ([2, 1, 4], [1, 2], [], [1, 2, 4, 8]):
        with pytest.raises(ConfigError, match="scales"):
            NextScaleTransformerConfig(**SMALL | {"scales": scales})
    with pytest.raises(ConfigError, match="condition_bias"):
        NextScaleTransformerConfig(**SMALL, condition_bias=True)


def test_saved_and_loaded_it_draws_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = NextScaleTransformer.from_pretrained(tmp_path)
    draws = [sample_codes(one, condition(one), [0, 1, 2], SamplingSettings()) for one in (model, loaded)]
    assert torch.equal(*draws)
    assert loaded.config.identity() == model.config.identity()


def test_a_new_model_starts_unmodulated():
    torch.manual_seed(0)
    model = NextScaleTransformer(NextScaleTransformerConfig(**SMALL, num_classes=3))
    parts = model.blocks[0].modulation(torch.randn(2, 32))
    assert torch.equal(parts[:, :, :2], torch.ones(2, 1, 2, 32))
    assert torch.equal(parts[:, :, 2:], torch.zeros(2, 1, 4, 32))


@pytest.mark.parametrize(("field", "value"), [("null_text", "features"), ("text_projection", "mlp")])
def test_conditions_as_one_vector_have_one_null_and_one_layer(field, value):
    with pytest.raises(ConfigError, match=rf'{field} must be "(token|linear)" where conditioning is "adaptive", got'):
        NextScaleTransformerConfig(**SMALL | KINDS["adaptive text"] | {field: value})
