"""Filters of logits, and draws by temperature and the inverse of the CDF."""

import pytest
import torch
from scipy import stats

from wvq.generator.base.filters import draw, filter_logits
from wvq.generator.base.sampling_settings import SamplingSettings

INF = float("inf")
PROBABILITIES = torch.tensor([0.4, 0.05, 0.3, 0.05, 0.2])
LARGEST_UNIFORM = 1 - 2**-24  # of torch.rand in float32


def probabilities(logits: torch.Tensor) -> list[float]:
    return [round(p, 5) for p in logits.softmax(-1)[0].tolist()]


def draws(logits: torch.Tensor, uniform, settings=None) -> torch.Tensor:
    """Codes of one row of logits at many uniform numbers."""
    uniform = torch.as_tensor(uniform, dtype=torch.float32)
    return draw(logits.expand(len(uniform), -1), uniform, settings or SamplingSettings())


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
