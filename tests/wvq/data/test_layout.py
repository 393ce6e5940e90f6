"""Layouts of codes: what is sound, the flat sequence and back, one line for codes of another shape."""

import json

import pytest
import torch

from wvq.data.layout import (
    flatten_codes,
    is_layout,
    layout_text,
    make_layout,
    sequence_length,
    unflatten_codes,
)
from wvq.errors import DataError

GRID, PRODUCT, SCALES = make_layout((2, 3)), make_layout((2, 3), 4), make_layout((4, 4), scales=[1, 2, 4])
LAYOUTS = {
    "grid": (GRID, (2, 3), 6, [[2, 3]], "2 x 3 a picture"),
    "product": (PRODUCT, (2, 3, 4), 24, [[2, 3, 4]], "2 x 3 a picture, 4 at each position"),
    "multi-scale": (
        SCALES,
        (21,),
        21,
        [[1, 1], [2, 2], [4, 4]],
        "21 a picture, of the sides 1, 2, 4 one after the other",
    ),
}


@pytest.fixture(params=LAYOUTS)
def kind(request):
    return request.param


def test_what_a_layout_holds(kind):
    layout, _, length, shapes, text = LAYOUTS[kind]
    assert layout == {"kind": kind, "shapes": shapes} == json.loads(json.dumps(layout))
    assert sequence_length(layout) == length
    assert layout_text(layout) == text
    assert is_layout(layout, shapes[-1][:2])
    assert not is_layout(layout, [5, 5])


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, "grid", {"kind": "grid"}, {"kind": "grid", "shapes": []}, {"kind": "grid", "shapes": 3},
        {"kind": "grid", "shapes": [3]}, {"kind": "grid", "shapes": [[4]]}, {"kind": "grid", "shapes": [[4, 4.0]]},
        {"kind": "grid", "shapes": [[4, 4, 2]]}, {"kind": "product", "shapes": [[4, 4]]},
        {"kind": "grid", "shapes": [[2, 2], [4, 4]]}, {"kind": "multi-scale", "shapes": [[4, 4], [2, 2]]},
        {"kind": "multi-scale", "shapes": [[0, 0], [4, 4]]}, {"kind": ["grid"], "shapes": [[4, 4]]},
        {"kind": "grid", "shapes": [[4, 4]], "more": 1},
    ],
)  # fmt: skip
def test_what_is_no_layout(value):
    assert not is_layout(value, [4, 4])


def test_codes_become_flat_and_come_back(kind):
    layout, shape, length, *_ = LAYOUTS[kind]
    codes = torch.arange(5 * length).view(5, *shape)
    flat = flatten_codes(codes, layout)
    assert torch.equal(flat, torch.arange(5 * length).view(5, length))  # row by row, the last dim fastest
    assert torch.equal(flatten_codes(flat, layout), flat)
    assert torch.equal(unflatten_codes(flat, layout), codes)
    assert torch.equal(unflatten_codes(codes, layout), codes)


@pytest.mark.parametrize("shape", [(), (6,), (2, 5), (2, 3, 2), (2, 3, 2, 4), (2, 4, 4, 2), (2, 1, 21)])
def test_another_shape_is_one_line_with_both(kind, shape):
    layout, wanted, length, *_ = LAYOUTS[kind]
    codes = torch.zeros(shape, dtype=torch.int64)
    for call in (flatten_codes, unflatten_codes):
        with pytest.raises(DataError, match=r"^codes must be \(B, ") as error:
            call(codes, layout)
        assert "\n" not in str(error.value)
        assert f"got {tuple(shape)}" in str(error.value)
        assert str(length) in str(error.value)
        assert ", ".join(map(str, wanted)) in str(error.value)
