"""Which convolution each scale takes."""

import pytest

from wvq.models.scale_maps import shared_convs


def test_scales_share_the_convolution_whose_place_is_closest():
    # The table of VAR's published models, which have ten scales and four convolutions.
    assert shared_convs(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert shared_convs(3, 4) == [0, 2, 3]
    assert shared_convs(5, 1) == [0] * 5
    assert shared_convs(5, 5) == [0, 1, 2, 3, 4]
    assert shared_convs(1, 1) == [0]
    assert shared_convs(4, 0) == []
    for scales in range(2, 12):
        for convs in range(1, 12):
            edge = 1 / (3 * convs) if convs == 4 else 1 / (2 * convs)
            for index, conv in enumerate(shared_convs(scales, convs)):
                places = [edge + k * (1 - 2 * edge) / max(convs - 1, 1) for k in range(convs)]
                distances = [abs(place - index / (scales - 1)) for place in places]
                assert distances[conv] == pytest.approx(min(distances))


def test_the_former_table_of_convolutions():
    assert shared_convs(10, 4, "even") == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert shared_convs(4, 4, "even") == [0, 1, 2, 3]
    assert shared_convs(2, 4, "even") == [0, 1]
    assert shared_convs(1, 1, "even") == [0]
    for scales in range(1, 12):
        for convs in range(1, scales + 1):  # each is somebody's
            assert set(shared_convs(scales, convs, "even")) == set(range(convs))
