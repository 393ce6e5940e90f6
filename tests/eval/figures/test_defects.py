"""Blank and repeated pictures: what counts as one, and against which real pictures."""

import pytest
import torch

from tests.stand_ins import draw_pictures
from wvq.eval.figures.defects import FLAT, blank_below, coarse_pixels, contrast, defects, small_pictures


def noisy(level: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """A picture of one grey with the ripples of a decoder."""
    noise = torch.randint(-20, 21, (1, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return (level + noise).clamp(0, 255).to(torch.uint8)


def shares(pictures: torch.Tensor, limit: float = FLAT) -> tuple[float, float]:
    return defects(contrast(pictures), small_pictures(pictures), limit)


def test_coarse_pixels_are_means_in_range():
    pictures = draw_pictures(3, size=16)
    coarse = coarse_pixels(pictures)
    assert coarse.shape == (3, 192)
    assert torch.allclose(coarse.mean(1), (pictures.float() / 127.5 - 1).mean((1, 2, 3)), atol=1e-5)


def test_contrast_is_that_of_shapes_and_not_of_ripples_or_colours():
    halves = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    halves[..., 16:] = 255
    assert contrast(halves).item() == pytest.approx(127.5)
    assert contrast(noisy(200)).item() < 5
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 24, 40)
    assert contrast(red).item() == 0


def test_blank_pictures_are_counted_and_do_not_count_as_repeated():
    pictures = torch.cat([draw_pictures(6, size=32), noisy(255), noisy(255), noisy(20, seed=1)])
    assert shares(pictures) == (pytest.approx(3 / 9), 0.0)


def test_where_real_pictures_are_flat_themselves_fewer_are_blank():
    assert blank_below(torch.full((40,), 2 * FLAT)) == FLAT
    faint = torch.full((40, 3, 32, 32), 255, dtype=torch.uint8)
    faint[:, :, 8:24, 8:24] = 240
    limit = blank_below(contrast(faint))
    assert 5 < limit < FLAT
    assert shares(faint, limit)[0] == 0
    assert shares(noisy(255), limit)[0] == 1


def test_repeated_pictures_are_those_after_the_first():
    pictures = draw_pictures(4, size=32).clamp(10, 245)
    near = (pictures[:1].int() + torch.randint(-8, 9, (1, 3, 32, 32))).to(torch.uint8)
    far = pictures[1:2].roll(6, dims=-1)
    assert shares(torch.cat([pictures, near, pictures[:1], far]), limit=0) == (0.0, pytest.approx(2 / 7))


def test_large_pictures_are_compared_small():
    assert small_pictures(draw_pictures(2, size=100)).shape == (2, 3 * 64 * 64)
    assert small_pictures(torch.zeros(2, 3, 16, 80, dtype=torch.uint8)).shape == (2, 3 * 16 * 64)
