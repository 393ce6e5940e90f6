"""Codes read in another order than row by row, and label smoothing: what the loss then is."""

import pytest
import torch

from tests.tiny import make_generator
from wvq.errors import ConfigError


def some_codes() -> torch.Tensor:
    return torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(1))


def orders(count: int, length: int) -> torch.Tensor:
    return torch.rand(count, length, generator=torch.Generator().manual_seed(3)).argsort(1)


def test_the_order_row_by_row_is_the_default():
    model = make_generator(target_positions=True, num_classes=3)
    codes, labels = some_codes(), torch.tensor([0, 2, -1])
    expected, found = model(codes, labels), model(codes, labels, order=torch.arange(16).expand(3, -1))
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)


def test_in_any_order_the_probabilities_of_all_pictures_sum_to_one():
    model = make_generator(num_codes=3, grid=[2, 2], target_positions=True, num_classes=2)
    codes = torch.cartesian_prod(*[torch.arange(3)] * 4)
    sums = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        order = torch.tensor(order).expand(81, -1)
        logs = model(codes, torch.zeros(81, dtype=torch.int64), order=order).logits.log_softmax(-1)
        picked = logs.gather(2, codes.gather(1, order)[..., None]).sum((1, 2))
        sums.append(picked)
        assert picked.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert not torch.allclose(sums[0], sums[1], atol=1e-2)  # each order is a model of its own


def test_in_another_order_a_code_changes_only_what_is_read_after_it():
    model = make_generator(target_positions=True)
    codes, order = some_codes(), orders(3, 16)
    before = model(codes, order=order).logits
    for place in (0, 7, 14):
        other = codes.scatter(1, order[:, place, None], (codes.gather(1, order[:, place, None]) + 1) % 32)
        after = model(other, order=order).logits
        assert torch.equal(after[:, : place + 1], before[:, : place + 1])
        assert (after[:, place + 1] - before[:, place + 1]).abs().max() > 1e-3


def test_an_order_needs_target_positions():
    with pytest.raises(ConfigError, match="order needs a model with target_positions"):
        make_generator()(torch.zeros(1, 16, dtype=torch.int64), order=torch.arange(16)[None])


def test_label_smoothing_spreads_a_share_over_all_codes():
    model = make_generator()
    codes = some_codes()
    plain, smooth = model(codes), model(codes, label_smoothing=0.1)
    uniform = -plain.logits.log_softmax(-1).mean()
    assert smooth.loss.item() == pytest.approx((0.9 * plain.loss + 0.1 * uniform).item(), rel=1e-5)
