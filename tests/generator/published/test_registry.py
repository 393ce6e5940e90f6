"""Families of published generators by name."""

import pytest

from wvq.errors import ConfigError
from wvq.generator.published.registry import read_generator
from wvq.models.published import PublishedOptions


def test_an_unknown_family_names_the_near_one():
    message = r'no generators of "lamagen" are known \(did you mean "llamagen"\?\); those of llamagen, var are'
    with pytest.raises(ConfigError, match=message):
        read_generator("lamagen", {}, "file.pt", PublishedOptions())
