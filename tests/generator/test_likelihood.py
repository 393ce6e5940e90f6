"""Exact likelihood: against the loss, over all pictures of a tiny model, bad codes."""

import itertools

import pytest
import torch

from tests.tiny import make_generator
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.likelihood import code_log_probabilities


def test_the_probabilities_of_all_pictures_sum_to_one():
    model = make_generator(num_codes=3, grid=[2, 2], num_classes=2)
    codes = torch.tensor(list(itertools.product(range(3), repeat=4)))
    for label in (-1, 0, 1):
        logs = code_log_probabilities(model, codes, Condition(torch.full((81,), label)))
        assert logs.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_mean_is_the_loss():
    model = make_generator(num_classes=3)
    codes, labels = torch.randint(32, (4, 4, 4)), torch.tensor([0, 1, 2, -1])
    found = code_log_probabilities(model, codes, Condition(labels))
    assert found.shape == (4, 16)
    assert -found.mean().item() == pytest.approx(model(codes, labels).loss.item(), rel=1e-5)


def test_a_null_text_is_seen_under_the_mask_of_the_text_that_it_replaces():
    model = make_generator(text_dim=8, text_length=3, null_text="features")
    mask, codes = torch.tensor([[False, True, True]]), torch.randint(32, (1, 16))
    null = Condition(None, torch.randn(1, 3, 8), mask).null()
    as_features = Condition(None, model.condition.null_text[None], mask)
    found, expected, whole = (
        code_log_probabilities(model, codes, condition) for condition in (null, as_features, Condition())
    )
    torch.testing.assert_close(found, expected)
    assert (found - whole).abs().max() > 1e-3


@pytest.mark.parametrize("codes", [torch.full((1, 16), 32), torch.full((1, 16), -1), torch.zeros(1, 16)])
def test_codes_out_of_range_are_refused(codes):
    with pytest.raises(ConfigError, match=r"codes must be integers in \[0, 32\)"):
        code_log_probabilities(make_generator(), codes, Condition())


@pytest.mark.parametrize("shape", [(1, 9), (16,), (4, 4)], ids=["another number", "one picture, flat", "one picture"])
def test_codes_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"codes must hold 16 a picture \(grid codes .*, got \("):
        code_log_probabilities(make_generator(), torch.zeros(shape, dtype=torch.int64), Condition())
