"""Sampling: guidance, one generator a picture, batches against singles, given codes."""

import numpy as np
import pytest
import torch

from tests.tiny import TEXT_DIM, make_generator
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.draws import uniforms
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.sampling import sample_codes

# Heads of 100, a prefix without queries and keys, and a null text under the mask of the text that it replaces.
LLAMAGEN = {"hidden_size": 200, "prefix_rotary": "erased", "text_projection": "mlp", "null_text": "features"}


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


# ---- pictures


def test_uniforms_are_each_pictures_own():
    rows = uniforms([5, 6, 5], 8)
    assert rows.shape == (3, 8)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], torch.rand(8, generator=torch.Generator().manual_seed(6)))
    assert ((rows >= 0) & (rows < 1)).all()


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
