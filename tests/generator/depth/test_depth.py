"""The depth generator: what each code is predicted from, cached passes, sampling, conditions, saving."""

import itertools

import pytest
import torch

from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.filters import FREE
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.depth import layers, sampling
from wvq.generator.depth.configuration import DepthTransformerConfig
from wvq.generator.depth.modeling import DepthTransformer
from wvq.generator.likelihood import code_log_probabilities
from wvq.generator.models import load_generator
from wvq.generator.sampling import sample_codes

K, G, POSITIONS = 32, 3, 16
SMALL = {"num_codes": K, "grid": [4, 4], "num_groups": G, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
SMALL |= {"dropout": 0.0, "token_dropout": 0.0}
TEXT = {"text_dim": 8, "text_length": 5}
KINDS = {
    "class": {"num_classes": 3},
    "text": {"num_classes": 3, "condition_bias": True, **TEXT},
    "null features": {"null_text": "features", "text_projection": "mlp", "prefix_rotary": "erased", **TEXT},
    "vectors": {"num_classes": 3, "code_dim": 6},
    "another width": {"num_classes": 3, "depth_hidden_size": 16, "depth_heads": 1, "depth_layers": 1},
    "tall": {"num_classes": 3, "grid": [8, 2], "qk_norm": True},
    "parallel": {"num_classes": 3, "depth_head": "parallel", "code_dim": 6},
    "none": {},
}


def make(kind="class", **fields):
    torch.manual_seed(0)
    model = DepthTransformer(DepthTransformerConfig(**SMALL | KINDS[kind] | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing starts at zero: each part counts
            parameter.add_(torch.randn_like(parameter) * 0.2)
    if model.config.code_dim:
        model.take_quantizer({"codebook": torch.randn_like(model.codebook)})
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
    shape = count, *model.config.grid, model.config.num_groups
    return torch.randint(0, model.config.num_codes, shape, generator=torch.Generator().manual_seed(seed))


def logits(model, codes, given):
    with torch.no_grad():
        return model(codes, **given.named()).logits


def guided_logits(model, codes, given, scales):
    """Guided teacher-forced logits (B, T G, K), each position with its scale."""
    scales = torch.tensor(scales).repeat_interleave(model.config.num_groups)[:, None]
    return torch.lerp(logits(model, codes, given.null()), logits(model, codes, given), scales)


@pytest.fixture(params=KINDS)
def model(request):
    return make(request.param)


# ---- teacher forcing


def test_a_code_is_predicted_from_earlier_positions_and_earlier_codebooks(model):
    codes, given = codes_of(model), condition(model)
    plain = logits(model, codes, given)
    assert plain.shape == (3, POSITIONS * G, K)
    parallel = model.config.depth_head == "parallel"
    for position, group in itertools.product((0, 5, 15), range(G)):
        other = codes.flatten(1).clone()
        place = position * G + group
        other[:, place] = (other[:, place] + 1) % K
        changed = (logits(model, other, given) - plain).abs().amax((0, 2)) > 1e-6
        after = (position + 1) * G if parallel else place + 1
        assert not changed[:after].any()
        assert changed[after:].all()


def test_the_loss_is_the_mean_over_all_codes(model):
    codes, given = codes_of(model), condition(model)
    conditions = given.class_labels, given.text_features, given.text_mask
    out = model(codes, *conditions)
    chosen = out.logits.log_softmax(-1).gather(-1, codes.flatten(1)[..., None])
    torch.testing.assert_close(out.loss, -chosen.mean())
    out.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    smoothed = model(codes, *conditions, label_smoothing=0.1, return_logits=False)
    assert smoothed.logits is None
    expected = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), codes.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(smoothed.loss, expected)


def test_conditions_matter_and_padding_does_not(model):
    codes, given = codes_of(model), condition(model)
    plain = logits(model, codes, given)
    if model.config.num_classes:
        assert (logits(model, codes, given.null()) - plain).abs().max() > 1e-3
    if given.text_mask is not None:
        features = given.text_features.masked_fill(~given.text_mask[..., None], 7.0)
        other = Condition(given.class_labels, features, given.text_mask)
        torch.testing.assert_close(logits(model, codes, other), plain)


def test_each_codebook_has_its_table_and_its_vectors():
    model = make("vectors")
    codes = codes_of(model).flatten(1, 2)
    maps = model.vector_in.weight.view(32, G, 2)
    expected = sum(
        model.code_embedding.weight[g * K + codes[..., g]] + model.codebook[g, codes[..., g]] @ maps[:, g].T
        for g in range(G)
    )
    torch.testing.assert_close(model.embed_codes(codes), expected)
    torch.testing.assert_close(model.embed_each(codes[..., 1:], 1), model.embed_each(codes)[..., 1:, :])


def test_vectors_are_of_zero_mean_and_unit_variance_in_each_codebook():
    model = make("vectors")
    model.take_quantizer({"codebook": torch.randn(G, K, 2) * torch.tensor([1.0, 9, 0.1])[:, None, None] + 3})
    torch.testing.assert_close(model.codebook.mean(1), torch.zeros(G, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.codebook.std((1, 2)), torch.ones(G), atol=0.05, rtol=0)
    plain = make()
    plain.take_quantizer({"codebook": torch.zeros(1)})  # sees no vectors
    assert not hasattr(plain, "codebook")


def test_a_new_model_gives_all_codes_the_same_probability():
    model = DepthTransformer(DepthTransformerConfig(**SMALL, code_dim=6)).eval()
    assert torch.equal(logits(model, codes_of(model), Condition()), torch.zeros(3, POSITIONS * G, K))
    normal = DepthTransformer(DepthTransformerConfig(**SMALL, head="normal")).eval()
    assert 0.01 < normal.classifiers[0].linear.weight.std() < 0.03


def test_many_positions_go_over_depth_in_parts(monkeypatch):
    model = make()
    codes, given = codes_of(model), condition(model)
    expected = logits(model, codes, given)
    monkeypatch.setattr(layers, "MOST_ROWS", 7)
    torch.testing.assert_close(logits(model, codes, given), expected)


# ---- sampling


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 3.0, "guidance_schedule": "linear"},
        {"guidance_scale": 2.0, "guidance_interval": (0.3, 0.6)},
    ],
)
def test_cached_passes_equal_teacher_forcing(model, settings, monkeypatch):
    """The logits that codes are drawn from are the guided teacher-forced ones of what was drawn."""
    seen, draw = [], sampling.draw
    monkeypatch.setattr(sampling, "draw", lambda logits, *rest: seen.append(logits) or draw(logits, *rest))
    settings, given = SamplingSettings(**settings), condition(model)
    codes = sample_codes(model, given, [0, 1, 2], settings)
    expected = guided_logits(model, codes, given, settings.scales(POSITIONS))
    rounding = 1e-5 * max(1.0, settings.guidance_scale)  # guidance multiplies it
    torch.testing.assert_close(torch.stack(seen, 1), expected, atol=rounding, rtol=1e-5)
    assert codes.shape == (3, *model.config.grid, G)


def test_the_half_without_the_condition_runs_only_while_guidance_is_on(monkeypatch):
    model, rows = make(), {"body": [], "depth": []}
    run, forward = DepthTransformer.run, layers.DepthLayers.forward
    monkeypatch.setattr(DepthTransformer, "run", lambda s, x, *rest: rows["body"].append(len(x)) or run(s, x, *rest))
    monkeypatch.setattr(
        layers.DepthLayers, "forward", lambda s, x, *rest: rows["depth"].append(len(x)) or forward(s, x, *rest)
    )
    settings = SamplingSettings(guidance_scale=2.0, guidance_interval=(0.25, 0.5))
    sample_codes(model, condition(model), [0, 1, 2], settings)
    assert rows["body"] == [3] * 4 + [3] + [6] * 4 + [3] * 8  # the pass between them catches up
    assert rows["depth"] == [3] * 4 * G + [6] * 4 * G + [3] * 8 * G


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(model):
    settings, given = SamplingSettings(guidance_scale=2.0, top_k=20, top_p=0.9, min_p=0.01), condition(model)
    codes = sample_codes(model, given, [4, 5, 6], settings)
    assert len({tuple(row) for row in codes.flatten(1).tolist()}) == 3
    for number in range(3):
        alone = sample_codes(model, given.rows([number]), [4 + number], settings)
        assert torch.equal(alone[0], codes[number])
    exact = settings.updated(deterministic=True)
    together = sample_codes(model, given, [4, 5, 6], exact)
    assert torch.equal(sample_codes(model, given.rows([1]), [5], exact)[0], together[1])


@pytest.mark.parametrize("kind", ["class", "parallel"])
def test_codes_follow_the_distribution(kind):
    """Of all pictures of a tiny model, each is drawn as often as its likelihood says."""
    model = make(kind, num_codes=2, num_groups=2, grid=[1, 2], code_dim=0)
    pictures = torch.tensor(list(itertools.product(range(2), repeat=4)))
    label = torch.ones(1, dtype=torch.int64)
    exact = code_log_probabilities(model, pictures, Condition(label.expand(16))).sum(1).exp()
    assert exact.sum().item() == pytest.approx(1, abs=1e-5)
    codes = sample_codes(model, Condition(label.expand(8_000)), list(range(8_000)), SamplingSettings()).flatten(1)
    drawn = torch.bincount(codes @ torch.tensor([8, 4, 2, 1]), minlength=16) / 8_000
    assert (drawn - exact).abs().max() < 0.02
    assert exact.max() - exact.min() > 0.1  # far from uniform: another order of the codes would be seen


def test_given_codes_stay_and_are_read_where_they_lie_in_part(model):
    settings, given = SamplingSettings(temperature=0), condition(model)
    fixed = torch.full((3, *model.config.grid, G), FREE)
    fixed[0, 1, 1, 0], fixed[1, 0, 0, 1], fixed[2, 2, 1] = 5, 7, torch.tensor([1, 2, 3])
    codes = sample_codes(model, given, [0, 1, 2], settings, fixed=fixed)
    likeliest = logits(model, codes, given).argmax(-1).view_as(fixed)
    assert torch.equal(torch.where(fixed == FREE, likeliest, fixed), codes)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0}, {"guidance_scale": 2.0, "deterministic": True}])
def test_given_codes_are_continued_as_if_they_had_been_drawn(model, settings):
    settings, given = SamplingSettings(**settings), condition(model)
    whole = sample_codes(model, given, [0, 1, 2], settings)
    fixed = whole.clone()
    fixed.flatten(1)[:, 7:] = FREE  # in the middle of a position
    assert torch.equal(sample_codes(model, given, [0, 1, 2], settings, fixed=fixed), whole)
    assert torch.equal(sample_codes(model, given, [0, 1, 2], settings, fixed=whole), whole)
    other = sample_codes(model, given, [7, 8, 9], settings, fixed=fixed)
    assert torch.equal(other.flatten(1)[:, :7], whole.flatten(1)[:, :7])
    assert not torch.equal(other, whole)


def test_drawn_codes_can_be_trained_on():
    model = make()
    model(sample_codes(model, condition(model), [0, 1, 2], SamplingSettings())).loss.backward()
    assert model.classifiers[1].linear.weight.grad.abs().sum() > 0


# ---- errors, saving


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth_head": "rq"}, "depth_head must be one of transformer, parallel, got"),
        ({"num_groups": 1}, "num_groups must be an integer of at least 2, got 1"),
        ({"code_dim": 8}, "code_dim must be a multiple of num_groups, 3, got 8"),
        ({"depth_hidden_size": 20}, "depth_heads must be a divisor of depth_hidden_size with a head size that is"),
        ({"depth_layers": 0}, "depth_layers must be an integer of at least 1"),
        ({"head": "tied"}, "head must be one of zero, normal"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DepthTransformerConfig(**SMALL | fields)


def test_what_does_not_fit_is_refused():
    model = make("vectors")
    for name in ("window", "passes"):
        line = f"{name} is for generators of one code a position; this one draws 3 at each"
        with pytest.raises(ConfigError, match=line):
            sample_codes(model, condition(model), [0, 1, 2], SamplingSettings(**{name: 4}))
    flat = torch.zeros(3, 48, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"fixed codes must be integers \(3, 4, 4, 3\)"):
        sample_codes(model, condition(model), [0, 1, 2], SamplingSettings(), fixed=flat)
    with pytest.raises(ConfigError, match="previews need a generator that draws scale by scale"):
        sample_codes(model, condition(model), [0, 1, 2], SamplingSettings(), callback=lambda *step: None)
    with pytest.raises(ConfigError, match=r"must hold 48 a picture \(product codes \(4 x 4 a picture, 3 at each pos"):
        model(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"codebook \(3, 32, 4\) does not fit num_groups 3 x num_codes 32 x"):
        model.take_quantizer({"codebook": torch.zeros(3, K, 4)})


def test_saved_and_loaded_it_draws_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load_generator(tmp_path)
    assert isinstance(loaded, DepthTransformer)
    draws = [sample_codes(one, condition(one), [0, 1, 2], SamplingSettings()) for one in (model, loaded)]
    assert torch.equal(*draws)
    assert loaded.config.identity() == model.config.identity()
