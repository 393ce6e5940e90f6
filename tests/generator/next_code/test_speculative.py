"""Several codes a pass: the codes of one at a time to the last, the exact distribution, fewer passes."""

import itertools

import pytest
import torch

from tests.generator.next_code.test_sampling import model_and_condition, one
from tests.tiny import make_generator
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.likelihood import code_log_probabilities
from wvq.generator.next_code.decoder import GuidedDecoder
from wvq.generator.next_code.speculative import GumbelNoise, WindowedSampler
from wvq.generator.sampling import sample_codes


def sampled(model, condition, count, window, fixed=None, **settings):
    return sample_codes(model, condition, list(range(count)), SamplingSettings(window=window, **settings), fixed=fixed)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "guidance_schedule": "linear", "guidance_interval": (0.2, 0.8)},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 0.0},
    ],
)
@pytest.mark.parametrize("window", [2, 5, 16, 40])
def test_any_window_gives_the_codes_of_one_at_a_time(window, settings):
    model, condition = model_and_condition(5)
    assert torch.equal(sampled(model, condition, 5, window, **settings), sampled(model, condition, 5, 1, **settings))


def test_greedy_codes_are_those_of_the_plain_sampler():
    model, condition = model_and_condition(4)
    plain = sampled(model, condition, 4, 0, temperature=0.0, guidance_scale=2.0)
    assert torch.equal(sampled(model, condition, 4, 6, temperature=0.0, guidance_scale=2.0), plain)


def test_a_picture_depends_on_its_seed_alone():
    model, condition = model_and_condition(5)
    together = sampled(model, condition, 5, 4, guidance_scale=2.0)
    settings = SamplingSettings(window=4, guidance_scale=2.0)
    for i in range(5):
        assert torch.equal(sample_codes(model, one(condition, i), [i], settings)[0], together[i])
    assert len({tuple(codes.flatten().tolist()) for codes in together}) == 5


def test_fixed_codes_stay_and_the_rest_is_that_of_one_at_a_time():
    model, condition = model_and_condition(3)
    fixed = torch.full((3, 4, 4), -1)
    fixed[:, 0], fixed[1, 2, 1] = torch.arange(4), 7
    codes = sampled(model, condition, 3, 6, fixed)
    assert torch.equal(codes[fixed >= 0], fixed[fixed >= 0])
    assert torch.equal(codes, sampled(model, condition, 3, 1, fixed))


@pytest.mark.parametrize("window", [0, 1, 3])
def test_pairs_of_codes_come_as_often_as_their_probability(window):
    model = make_generator(num_codes=4, grid=[1, 2], num_classes=1)
    count = 4_000
    label = torch.zeros(1, dtype=torch.int64)
    pairs = torch.tensor(list(itertools.product(range(4), repeat=2)))
    expected = code_log_probabilities(model, pairs, Condition(label.expand(16))).sum(1).exp()
    codes = sampled(model, Condition(label.expand(count)), count, window).view(count, 2)
    found = torch.bincount(codes[:, 0] * 4 + codes[:, 1], minlength=16) / count
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    assert expected.max() < 0.9
    deviation = (expected * (1 - expected) / count).sqrt()
    assert ((found - expected).abs() <= 4 * deviation + 1e-4).all()


def test_codes_that_are_easy_to_guess_take_few_passes():
    model = make_generator(num_codes=8, grid=[4, 4], num_classes=2)
    with torch.no_grad():
        model.head.weight.mul_(1e-3)  # hardly any context: a guess from the last position's logits is nearly right
    condition = Condition(torch.zeros(1, dtype=torch.int64))
    passes = {}
    for window in (1, 8):
        codes = torch.full((1, 16), -1)
        decoder = GuidedDecoder(model, condition, 1, [1.0] * 16)
        with torch.inference_mode():
            passes[window] = WindowedSampler(codes, decoder, [0], SamplingSettings(window=window)).fill(0, 16)
        assert (codes >= 0).all()
    assert passes[1] == 16
    assert passes[8] <= 5


def test_noise_is_that_of_its_position_however_it_is_asked_for():
    whole = GumbelNoise([3, 4], 6, torch.device("cpu"))(0, 10)
    parts = GumbelNoise([3, 4], 6, torch.device("cpu"))
    assert torch.equal(parts(0, 3), whole[:, :3])
    assert torch.equal(parts(1, 6), whole[:, 1:6])
    assert torch.equal(parts(5, 7), whole[:, 5:7])
    assert torch.equal(GumbelNoise([4], 6, torch.device("cpu"))(2, 9), whole[1:, 2:9])
    many = GumbelNoise([0], 100_000, torch.device("cpu"))(0, 1)
    assert many.mean() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert torch.isfinite(many).all()
