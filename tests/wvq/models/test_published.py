"""Options for models of other projects are checked where they enter."""

import pytest

from wvq.errors import ConfigError
from wvq.models.published import PublishedOptions


def test_nothing_need_be_given():
    PublishedOptions().check()


@pytest.mark.parametrize("field", ["image_size", "num_heads"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "four"])
def test_sizes_are_whole_numbers(field, value):
    with pytest.raises(ConfigError, match=field):
        PublishedOptions(**{field: value}).check()


@pytest.mark.parametrize("scales", [[], [0, 1], [4, 2, 1], "four"])
def test_scales_rise(scales):
    with pytest.raises(ConfigError, match="scales"):
        PublishedOptions(scales=scales).check()
