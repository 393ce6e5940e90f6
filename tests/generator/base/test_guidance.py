"""Guidance schedules: their ends, their shape, the interval."""

from itertools import pairwise

import pytest

from wvq.generator.base.guidance import SCHEDULES, guidance_scales


def scales(schedule, power=1.0, interval=(0.0, 1.0), scale=3.0):
    return guidance_scales(scale, schedule, power, interval, 8)


def test_constant_has_the_scale_everywhere():
    assert scales("constant") == [3.0] * 8


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "constant"])
def test_the_others_rise_from_one_towards_the_scale(schedule):
    found = scales(schedule, power=2.0)
    assert found[0] == 1
    assert all(a < b for a, b in pairwise(found))
    assert found[-1] < 3
    falling = scales(schedule, scale=0.0)
    assert all(a > b for a, b in pairwise(falling))


def test_values_by_hand():
    assert scales("linear") == pytest.approx([1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75])
    assert scales("cosine")[4] == pytest.approx(2)
    assert scales("cosine")[2] == pytest.approx(1.2928932)
    assert scales("power_cosine", power=2.0)[4] == pytest.approx(1.2928932)  # cosine at 1/2 squared
    assert scales("power_cosine") == scales("cosine")


def test_the_interval_switches_guidance_off_outside():
    assert scales("constant", interval=(0.25, 0.5)) == [1, 1, 3, 3, 1, 1, 1, 1]
    assert scales("linear", interval=(0.5, 1.0))[:5] == [1, 1, 1, 1, 2]
