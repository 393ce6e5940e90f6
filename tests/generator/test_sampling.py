"""Sampling: guidance, temperature, filters, inverse-CDF draws, one generator a picture, batches against singles."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.tiny import TEXT_DIM, make_generator
from wvq.errors import ConfigError
from wvq.generator.conditioning import Condition
from wvq.generator.filters import draw, filter_logits
from wvq.generator.modeling import ImageCodeTransformer
from wvq.generator.sampling import sample_codes, uniforms
from wvq.generator.sampling_settings import SamplingSettings

INF = float("inf")
PROBABILITIES = torch.tensor([0.4, 0.05, 0.3, 0.05, 0.2])
LARGEST_UNIFORM = 1 - 2**-24  # of torch.rand in float32


def probabilities(logits: torch.Tensor) -> list[float]:
    return [round(p, 5) for p in logits.softmax(-1)[0].tolist()]


def draws(logits: torch.Tensor, uniform, settings=None) -> torch.Tensor:
    """Codes of one row of logits at many uniform numbers."""
    uniform = torch.as_tensor(uniform, dtype=torch.float32)
    return draw(logits.expand(len(uniform), -1), uniform, settings or SamplingSettings())


def model_and_condition(count: int, **changes) -> tuple[ImageCodeTransformer, Condition]:
    """A model conditional on class and text, and a condition of that many pictures."""
    model = make_generator(num_classes=3, text_dim=TEXT_DIM, text_length=5, **changes)
    draw = torch.Generator().manual_seed(1)
    mask = torch.arange(5) >= torch.arange(count)[:, None] % 6
    features = torch.randn(count, 5, TEXT_DIM, generator=draw)
    return model, Condition(torch.arange(count) % 4 - 1, features, mask)


def one(condition: Condition, i: int) -> Condition:
    return Condition(*(value[i : i + 1] for value in vars(condition).values()))


# ---- guidance


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 3), (0.0, 6), (2.0, 6)])
def test_scale_one_runs_no_unconditional_half(scale, rows, monkeypatch):
    model, condition = model_and_condition(3)
    seen = []
    run = ImageCodeTransformer.run
    monkeypatch.setattr(ImageCodeTransformer, "run", lambda self, x, *rest: seen.append(len(x)) or run(self, x, *rest))
    sample_codes(model, condition, [0, 1, 2], SamplingSettings(guidance_scale=scale))
    assert seen == [rows] * 16


def test_guidance_uses_the_null_that_was_trained():
    """Greedy guided codes equal those worked out from two full forward passes at each step."""
    model, condition = model_and_condition(3)
    found = sample_codes(model, condition, [0, 1, 2], SamplingSettings(guidance_scale=2.5, temperature=0)).flatten(1)
    codes = torch.zeros(3, 16, dtype=torch.int64)
    for position in range(16):
        conditional = model(codes, condition.class_labels, condition.text_features, condition.text_mask).logits
        unconditional = model(codes).logits  # nothing given: all null
        logits = unconditional + 2.5 * (conditional - unconditional)
        codes[:, position] = logits[:, position].argmax(-1)
    assert torch.equal(found, codes)
    unguided = sample_codes(model, condition, [0, 1, 2], SamplingSettings(temperature=0)).flatten(1)
    assert not torch.equal(unguided, codes)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_schedule": "linear"},
        {"guidance_schedule": "cosine", "guidance_interval": (0.0, 0.6)},
        {"guidance_schedule": "power_cosine", "guidance_power": 1.5, "guidance_interval": (0.3, 0.8)},
        {"guidance_interval": (0.3, 1.0)},
        {"guidance_interval": (0.9, 0.93)},  # between two positions: never on
    ],
)
@pytest.mark.parametrize("changes", [{}, {"condition_bias": True}], ids=["plain", "bias"])
def test_scheduled_guidance_equals_full_forwards_at_every_position(settings, changes):
    model, condition = model_and_condition(3, **changes)
    settings = SamplingSettings(guidance_scale=3.0, temperature=0, **settings)
    found = sample_codes(model, condition, [0, 1, 2], settings).flatten(1)
    codes = torch.zeros(3, 16, dtype=torch.int64)
    for position, scale in enumerate(settings.scales(16)):
        conditional = model(codes, condition.class_labels, condition.text_features, condition.text_mask).logits
        unconditional = model(codes).logits
        codes[:, position] = (unconditional + scale * (conditional - unconditional))[:, position].argmax(-1)
    assert torch.equal(found, codes)


def test_the_unconditional_half_runs_only_while_guidance_is_on(monkeypatch):
    model, condition = model_and_condition(3)
    seen = []
    run = ImageCodeTransformer.run
    monkeypatch.setattr(ImageCodeTransformer, "run", lambda s, x, *rest: seen.append(x.shape[:2]) or run(s, x, *rest))
    settings = SamplingSettings(guidance_scale=2.0, guidance_interval=(0.25, 0.5))
    sample_codes(model, condition, [0, 1, 2], settings)
    prefix = model.config.prefix_length
    first, catching_up = [(3, prefix), *[(3, 1)] * 3], [(3, prefix + 3)]
    assert seen == [*first, *catching_up, *[(6, 1)] * 4, *[(3, 1)] * 8]


def test_scale_zero_ignores_the_condition():
    model, condition = model_and_condition(3)
    settings = SamplingSettings(guidance_scale=0.0)
    null = sample_codes(model, condition.null(), [0, 1, 2], SamplingSettings())
    assert torch.equal(sample_codes(model, condition, [0, 1, 2], settings), null)


# ---- filters


def test_top_k_keeps_the_likeliest_codes_exactly():
    logits = PROBABILITIES.log()[None]
    assert probabilities(filter_logits(logits, 2, 1.0)) == [0.57143, 0.0, 0.42857, 0.0, 0.0]
    assert filter_logits(logits, 1, 1.0).isfinite().tolist() == [[True, False, False, False, False]]
    assert torch.equal(filter_logits(logits, 5, 1.0), logits)
    assert torch.equal(filter_logits(logits, 100, 1.0), logits)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, [0]), (0.39, [0]), (0.41, [0, 2]), (0.69, [0, 2]), (0.71, [0, 2, 4]), (0.89, [0, 2, 4])],
)
def test_top_p_keeps_the_fewest_codes_that_reach_the_share(top_p, kept):
    filtered = filter_logits(PROBABILITIES.log()[None], 0, top_p)
    assert filtered[0].isfinite().nonzero().flatten().tolist() == kept


def test_top_p_counts_what_top_k_left():
    """Of the renormalised .57 and .43 a share of .5 keeps one code; of all codes it would keep two."""
    logits = PROBABILITIES.log()[None]
    assert filter_logits(logits, 2, 0.5)[0].isfinite().nonzero().flatten().tolist() == [0]
    assert filter_logits(logits, 0, 0.5)[0].isfinite().nonzero().flatten().tolist() == [0, 2]


@pytest.mark.parametrize(("min_p", "kept"), [(0.12, [0, 1, 2, 3, 4]), (0.13, [0, 2, 4]), (0.6, [0, 2]), (1.0, [0])])
def test_min_p_keeps_the_codes_of_a_share_of_the_likeliest(min_p, kept):
    filtered = filter_logits(PROBABILITIES.log()[None], min_p=min_p)
    assert filtered[0].isfinite().nonzero().flatten().tolist() == kept


def test_filters_work_row_by_row_and_never_in_place():
    logits = torch.stack([PROBABILITIES.log(), PROBABILITIES.flip(0).log()])
    before = logits.clone()
    filtered = filter_logits(logits, 2, 0.9)
    draw(logits, torch.tensor([0.3, 0.7]), SamplingSettings(temperature=0.5, top_k=2, top_p=0.9))
    assert torch.equal(logits, before)
    assert filtered.isfinite().nonzero().tolist() == [[0, 0], [0, 2], [1, 2], [1, 4]]


def test_temperature_divides_the_logits_before_the_filters():
    logits = PROBABILITIES.log()[None]
    uniform = (torch.arange(4000) + 0.5) / 4000
    shares = draws(logits, uniform, SamplingSettings(temperature=0.5)).bincount(minlength=5) / 4000
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    torch.testing.assert_close(shares, expected, atol=1e-3, rtol=0)
    # At temperature 2 the likeliest code has .31 of the probability, so a share of .35 needs a second one.
    flat, sharp = (set(draws(logits, uniform, SamplingSettings(temperature=t, top_p=0.35)).tolist()) for t in (2, 1))
    assert (flat, sharp) == ({0, 2}, {0})


def test_temperature_zero_takes_the_likeliest_code():
    logits = torch.tensor([[0.0, 2.0, 1.9], [5.0, 4.9, 4.0]])
    for value in (0.0, 0.5, LARGEST_UNIFORM):
        assert draw(logits, torch.full((2,), value), SamplingSettings(temperature=0)).tolist() == [1, 0]


# ---- draws


def test_draws_follow_the_probabilities():
    """Chi-square over 20,000 uniforms; a wrong order or share of codes fails by far."""
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    counts = draws(PROBABILITIES.log()[None], uniform).bincount(minlength=5).numpy()
    expected = PROBABILITIES.double() / PROBABILITIES.double().sum()
    assert stats.chisquare(counts, expected.numpy() * 20_000).pvalue > 0.001


def test_draws_over_many_codes_follow_the_probabilities():
    logits = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    uniform = (torch.arange(40_000) + 0.5) / 40_000
    codes = torch.cat([draws(logits, part) for part in uniform.split(5_000)])
    # Each number lies between the bounds of its code, taken in float64.
    upper = logits[0].double().softmax(-1).cumsum(-1)
    lower, place = torch.cat([torch.zeros(1), upper[:-1]]), 1 - uniform.double()
    assert (lower[codes] - place).max() < 2e-6
    assert (place - upper[codes]).max() < 2e-6
    assert codes.unique().numel() > 4_000


@pytest.mark.parametrize("value", [0.0, 1e-7, 0.25, 0.5, 0.75, 1 - 1e-6, LARGEST_UNIFORM])
def test_codes_without_probability_are_never_drawn(value):
    logits = torch.full((1, 9), -INF)
    logits[0, [3, 5]] = 0.0
    assert draws(logits, [value]).item() in (3, 5)
    assert draws(logits.flip(1), [value]).item() in (3, 5)
    alone = torch.full((1, 9), -INF)
    alone[0, 4] = -3.0
    assert draws(alone, [value]).item() == 4


@pytest.mark.parametrize("value", [0.0, LARGEST_UNIFORM])
def test_the_ends_of_the_uniform_respect_top_k(value):
    logits = torch.randn(50, 1024, generator=torch.Generator().manual_seed(0))
    found = draw(logits, torch.full((50,), value), SamplingSettings(top_k=3))
    best = logits.topk(3).indices
    assert (found[:, None] == best).any(1).all()


def test_uniforms_are_each_pictures_own():
    rows = uniforms([5, 6, 5], 8)
    assert rows.shape == (3, 8)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], torch.rand(8, generator=torch.Generator().manual_seed(6)))
    assert ((rows >= 0) & (rows < 1)).all()


# ---- pictures


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "top_k": 10, "top_p": 0.9, "temperature": 0.8}])
@pytest.mark.parametrize("changes", [{}, {"code_dim": 4, "condition_bias": True}], ids=["plain", "extras"])
def test_a_batch_of_seven_equals_seven_singles(settings, changes):
    model, condition = model_and_condition(7, **changes)
    settings = SamplingSettings(**settings)
    together = sample_codes(model, condition, list(range(7)), settings)
    singles = [sample_codes(model, one(condition, i), [i], settings) for i in range(7)]
    assert together.shape == (7, 4, 4)
    assert torch.equal(together, torch.cat(singles))


def test_same_seed_same_codes_other_seed_other_codes():
    model, condition = model_and_condition(2)
    first, again, other = (
        sample_codes(model, condition, seeds, SamplingSettings()) for seeds in ([3, 4], [3, 4], [5, 6])
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_random_state_is_neither_read_nor_changed():
    model, condition = model_and_condition(2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sample_codes(model, condition, [0, 1], SamplingSettings())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(sample_codes(model, condition, [0, 1], SamplingSettings()), first)


def test_codes_are_a_grid_of_int64_in_range():
    model = make_generator(grid=[2, 5])
    codes = sample_codes(model, Condition(), [0, 1, 2], SamplingSettings())
    assert (codes.shape, codes.dtype) == ((3, 2, 5), torch.int64)
    assert codes.min() >= 0
    assert codes.max() < 32


# ---- given codes


@pytest.mark.parametrize(
    "settings", [{}, {"guidance_scale": 2.0}, {"guidance_scale": 2.0, "guidance_schedule": "linear"}]
)
def test_given_rows_are_continued_as_if_they_had_been_drawn(settings):
    model, condition = model_and_condition(3)
    settings = SamplingSettings(**settings)
    whole = sample_codes(model, condition, [0, 1, 2], settings)
    fixed = whole.clone()
    fixed[:, 2:] = -1
    assert torch.equal(sample_codes(model, condition, [0, 1, 2], settings, fixed=fixed), whole)
    other = sample_codes(model, condition, [7, 8, 9], settings, fixed=fixed)
    assert torch.equal(other[:, :2], whole[:, :2])
    assert not torch.equal(other[:, 2:], whole[:, 2:])


def test_given_places_stay_and_are_seen_by_what_follows():
    model, condition = model_and_condition(2)
    settings = SamplingSettings(temperature=0)
    fixed = torch.full((2, 4, 4), -1)
    fixed[0, 1, 2], fixed[1, 3, 3] = 5, 7
    codes = sample_codes(model, condition, [0, 1], settings, fixed=fixed)
    assert (codes[0, 1, 2], codes[1, 3, 3]) == (5, 7)
    logits = model(codes, condition.class_labels, condition.text_features, condition.text_mask).logits
    likeliest = logits.argmax(-1).view(2, 4, 4)
    assert torch.equal(torch.where(fixed < 0, likeliest, fixed), codes)


def test_all_codes_given_are_returned():
    model, condition = model_and_condition(2)
    fixed = torch.arange(32).view(2, 4, 4)
    assert torch.equal(sample_codes(model, condition, [0, 1], SamplingSettings(), fixed=fixed), fixed)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        (torch.zeros(2, 4, 4), "fixed codes must be integers"),
        (torch.zeros(2, 16, dtype=torch.int64), r"fixed codes must be integers \(2, 4, 4\), got .*\(2, 16\)"),
        (torch.full((2, 4, 4), 32), r"fixed codes must be in \[0, 32\), or -1"),
        (torch.full((2, 4, 4), -2), r"fixed codes must be in \[0, 32\), or -1"),
    ],
)
def test_given_codes_that_do_not_fit_are_refused(fixed, message):
    model, condition = model_and_condition(2)
    with pytest.raises(ConfigError, match=message):
        sample_codes(model, condition, [0, 1], SamplingSettings(), fixed=fixed)


def test_drawn_codes_can_be_trained_on():
    model = make_generator()
    codes = sample_codes(model, Condition(), [0, 1], SamplingSettings())
    model(codes).loss.backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_greedy_codes_are_the_likeliest_at_every_position():
    model, condition = model_and_condition(3)
    codes = sample_codes(model, condition, [0, 1, 2], SamplingSettings(temperature=0)).flatten(1)
    logits = model(codes, condition.class_labels, condition.text_features, condition.text_mask).logits
    assert torch.equal(logits.argmax(-1), codes)
    assert len(np.unique(codes)) > 3


def test_sampled_codes_have_the_models_probability():
    """Mean of -ln p of drawn codes against the entropy of the distributions that they were drawn from."""
    model, _ = model_and_condition(1)
    labels = torch.zeros(256, dtype=torch.int64)
    codes = sample_codes(model, Condition(labels), list(range(256)), SamplingSettings()).flatten(1)
    with torch.no_grad():
        logs = model(codes, labels).logits.log_softmax(-1)
    surprise = -logs.gather(2, codes[..., None]).mean()
    entropy = -(logs.exp() * logs).sum(-1).mean()
    assert surprise.item() == pytest.approx(entropy.item(), rel=0.05)
