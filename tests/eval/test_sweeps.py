"""Sweeps: a field and its values, or one line that says what is wrong."""

import pytest

from wvq.errors import ConfigError
from wvq.eval.sweeps import parse_sweep


def test_sweeps():
    assert parse_sweep("guidance_scale=1:4:0.5") == ("guidance_scale", [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
    assert parse_sweep("temperature=0.8:1.1:0.1") == ("temperature", [0.8, 0.9, 1.0, 1.1])
    assert parse_sweep("top_k=100:300:100") == ("top_k", [100, 200, 300])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance=1:2:1", r'"guidance" is no number among the sampling settings \(did you mean "guidance_scale"\?\)'),
        ("guidance_schedule=1:2:1", "is no number"),
        ("deterministic=0:1:1", "is no number"),
        ("guidance_scale", "must read guidance_scale=first:last:step"),
        ("guidance_scale=1:2", "must read guidance_scale=first:last:step"),
        ("guidance_scale=1:2:0", "step must be above 0"),
        ("guidance_scale=2:1:1", "first value at most the last"),
        ("guidance_scale=1:nan:1", "first value at most the last"),
        ("guidance_scale=0:1000:1", "at most 100"),
        ("top_k=1:2:0.5", "whole numbers"),
        ("top_p=0.5:1.5:0.5", r"top_p must be in \(0, 1\]"),
    ],
)
def test_other_sweeps_are_one_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_sweep(text)
