"""The moving average of a model's weights."""

import torch
from torch import nn

from tests.wvq.training.regression import Tiny
from wvq.training.averaging import ExponentialAverage


def test_average_by_hand():
    model = Tiny()
    average = ExponentialAverage(model, decay=0.5)
    expected = model.linear.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            model.linear.weight.copy_(torch.randn(1, 3))
            model.count.fill_(step)
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.linear.weight.detach()
        torch.testing.assert_close(average.model.linear.weight, expected)
        assert average.model.count == step
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not average.model.training


def test_average_state_round_trip():
    model = Tiny()
    average, other = ExponentialAverage(model, 0.9), ExponentialAverage(Tiny(), 0.9)
    for _ in range(3):
        nn.init.normal_(model.linear.weight)
        average.update(model)
    other.load_state_dict(average.state_dict())
    nn.init.normal_(model.linear.weight)
    average.update(model)
    other.update(model)
    assert torch.equal(average.model.linear.weight, other.model.linear.weight)
