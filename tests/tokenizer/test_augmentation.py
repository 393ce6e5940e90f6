"""DiffAugment: what the draws do, each picture its own, gradients, and how often each change occurs."""

import pytest
import torch

from wvq.tokenizer import augmentation
from wvq.tokenizer.augmentation import CUTOUT, TRANSLATION, diff_augment, joined_rand

# brightness, saturation, contrast, shift down, shift right, hole's row, hole's column; cell middles are neutral.
NEUTRAL = [0.5] * 7


def pictures(count: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


@pytest.fixture
def drawn(monkeypatch):
    """A function that sets the draws of the pictures of a batch, one list each, by (place, value) pairs."""

    def fix(*changes: dict[int, float]) -> None:
        rows = [[change.get(place, value) for place, value in enumerate(NEUTRAL)] for change in changes]
        monkeypatch.setattr(augmentation, "joined_rand", lambda *arguments: torch.tensor(rows))

    return fix


@pytest.fixture
def uncut(monkeypatch):
    monkeypatch.setattr(augmentation, "_cut_out", lambda x, down, right: x)


def test_a_seed_repeats_the_augmentation():
    x = pictures()
    torch.manual_seed(3)
    first = diff_augment(x)
    again = diff_augment(x)
    torch.manual_seed(3)
    assert torch.equal(diff_augment(x), first)
    assert not torch.equal(again, first)


def test_neutral_draws_leave_the_pictures_as_they_are(drawn, uncut):
    drawn({}, {})
    torch.testing.assert_close(diff_augment(pictures()), pictures(), rtol=0, atol=1e-6)


def test_brightness_adds(drawn, uncut):
    drawn({0: 0.9}, {0: 0.1})
    x = pictures()
    torch.testing.assert_close(diff_augment(x), x + torch.tensor([0.4, -0.4]).view(2, 1, 1, 1))


def test_saturation_goes_from_grey_to_twice(drawn, uncut):
    drawn({1: 0.0}, {1: 1.0})
    x = pictures()
    grey = x.mean(1, keepdim=True)
    found = diff_augment(x)
    torch.testing.assert_close(found[0], grey[0].expand(3, 16, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], 2 * x[1] - grey[1])


def test_contrast_goes_from_half_to_one_and_a_half(drawn, uncut):
    drawn({2: 0.0}, {2: 1.0})
    x = pictures()
    mean = x.mean((1, 2, 3), keepdim=True)
    factors = torch.tensor([0.5, 1.5]).view(2, 1, 1, 1)
    torch.testing.assert_close(diff_augment(x), factors * x + (1 - factors) * mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("share", "offset"), [(0.0, -2), (0.19, -2), (0.21, -1), (0.5, 0), (0.61, 1), (1.0, 2)])
def test_a_shift_moves_rows_and_columns_and_fills_with_0(drawn, uncut, share, offset):
    """16 pixels: five offsets from -2 to 2, each a fifth of the draws."""
    drawn({3: share}, {4: share})
    x = pictures()
    down, right = diff_augment(x)
    expected_down, expected_right = torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)
    for target in range(16):
        if 0 <= target - offset < 16:
            expected_down[:, target] = x[0, :, target - offset]
            expected_right[:, :, target] = x[1, :, :, target - offset]
    torch.testing.assert_close(down, expected_down, rtol=0, atol=1e-6)
    torch.testing.assert_close(right, expected_right, rtol=0, atol=1e-6)
    assert round(16 * TRANSLATION) == 2


@pytest.mark.parametrize(
    ("draws", "rows", "columns"),
    [
        ((0.5, 0.5), (4, 12), (4, 12)),
        ((0.0, 0.5), (0, 4), (4, 12)),
        ((0.99, 0.26), (11, 16), (0, 8)),
    ],
)
def test_a_cutout_is_a_square_of_half_the_side_around_its_middle(drawn, draws, rows, columns):
    drawn({5: draws[0], 6: draws[1]})
    expected = pictures(1)
    expected[..., rows[0] : rows[1], columns[0] : columns[1]] = 0
    torch.testing.assert_close(diff_augment(pictures(1)), expected, rtol=0, atol=1e-6)
    assert CUTOUT == 0.5


def test_every_picture_gets_its_own_draw():
    found = diff_augment(pictures(1).expand(8, 3, 16, 16))
    assert len({tuple(picture.flatten().tolist()) for picture in found}) == 8


def test_draws_of_one_picture_do_not_touch_the_others(drawn):
    drawn({}, {0: 0.9, 3: 0.0, 5: 0.1})
    changed = diff_augment(pictures())
    drawn({}, {})
    plain = diff_augment(pictures())
    assert torch.equal(changed[0], plain[0])
    assert not torch.equal(changed[1], plain[1])


def test_gradient_flows_to_all_that_stays_visible(drawn):
    drawn({3: 1.0})
    x = pictures(1).requires_grad_()
    (diff_augment(x) * torch.randn(1, 3, 16, 16)).sum().backward()
    reached = x.grad[0].abs().sum(0) > 0
    # Contrast 1 leaves no path through the mean: rows 14 and 15 went out, rows 2 to 9 lie under the hole.
    expected = torch.ones(16, 16, dtype=torch.bool)
    expected[14:] = False
    expected[2:10, 4:12] = False
    assert torch.equal(reached, expected)


def test_gradient_is_that_of_differences():
    x = pictures(1, 8).double().requires_grad_()

    def augmented(x):
        torch.manual_seed(0)
        return diff_augment(x)

    assert torch.autograd.gradcheck(augmented, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype):
    assert diff_augment(pictures().to(dtype)).dtype == dtype


def test_pictures_that_are_not_square():
    x = torch.rand(4, 3, 8, 24) + 1
    found = diff_augment(x)
    assert found.shape == x.shape
    assert found.isfinite().all()


def test_one_process_draws_uniform_numbers_for_its_pictures():
    draws = joined_rand(2_000, 7, torch.device("cpu"))
    assert draws.shape == (2_000, 7)
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    torch.testing.assert_close(draws.mean(0), torch.full((7,), 0.5), rtol=0, atol=0.04)


def test_each_process_takes_its_rows_of_the_joined_draw(monkeypatch):
    torch.manual_seed(0)
    joined = torch.rand(6, 7)
    monkeypatch.setattr(augmentation, "world_size", lambda: 3)
    monkeypatch.setattr(augmentation, "from_first_process", lambda tensor: tensor)
    for rank in range(3):
        monkeypatch.setattr(augmentation, "process_rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        assert torch.equal(joined_rand(2, 7, torch.device("cpu")), joined[2 * rank : 2 * rank + 2])
