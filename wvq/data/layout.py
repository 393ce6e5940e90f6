"""The layout of a picture's codes: what each place of the flat sequence in a code cache stands for.

A layout is a dict of plain values, as JSON holds them. For an h x w grid, G codebooks and T codes a picture:

    {"kind": "grid", "shapes": [[h, w]]}                              one code a position, row by row
    {"kind": "product", "shapes": [[h, w, G]]}                        the G codes of one position, then the next
    {"kind": "multi-scale", "shapes": [[1, 1], [2, 2], ..., [h, w]]}   one map a scale, coarse to fine, each row by row

Of a grid that is not square, scale s has s codes along the shorter side, and along the longer one as many as keep the
grid's shape, rounded up: the scales 1, 2 and 4 of a 4 x 6 grid have maps of 1 x 2, 2 x 3 and 4 x 6.

Models of the first two kinds hold codes as (B, h, w) and (B, h, w, G), multi-scale ones as the flat (B, T) itself.
"""

from __future__ import annotations

import math

import torch

from wvq.checks import is_integer
from wvq.errors import DataError

KINDS = {"grid": 2, "product": 3, "multi-scale": 2}  # kind: numbers in each of its shapes


def make_layout(grid: tuple[int, int], num_groups: int = 1, scales: list[int] | None = None) -> dict:
    """The layout of a tokenizer's codes, from its grid and what puts several codes at a position."""
    if scales:
        shapes = [[-(-side * scale // min(grid)) for side in grid] for scale in scales]
        return {"kind": "multi-scale", "shapes": shapes}
    if num_groups > 1:
        return {"kind": "product", "shapes": [[*grid, num_groups]]}
    return {"kind": "grid", "shapes": [list(grid)]}


def is_layout(value, grid: list[int]) -> bool:
    """Whether ``value`` is a sound layout of codes that end on ``grid`` (rows and columns)."""
    if not isinstance(value, dict) or set(value) != {"kind", "shapes"} or value["kind"] not in list(KINDS):
        return False
    kind, shapes = value["kind"], value["shapes"]
    if not isinstance(shapes, list) or not shapes or (len(shapes) > 1 and kind != "multi-scale"):
        return False
    sound = all(isinstance(s, list) and len(s) == KINDS[kind] and all(map(is_integer, s)) for s in shapes)
    return sound and shapes[-1][:2] == list(grid)


def sequence_length(layout: dict) -> int:
    """Codes T of one picture."""
    return sum(map(math.prod, layout["shapes"]))


def codes_shape(layout: dict) -> tuple[int, ...]:
    """The shape of a picture's codes as models hold them."""
    return (sequence_length(layout),) if layout["kind"] == "multi-scale" else tuple(layout["shapes"][0])


def layout_text(layout: dict) -> str:
    """The layout in words, such as "4 x 4 a picture"."""
    shapes = layout["shapes"]
    if layout["kind"] == "multi-scale":
        sides = ", ".join(str(rows) if rows == columns else f"{rows} x {columns}" for rows, columns in shapes)
        return f"{sequence_length(layout):,} a picture, of the sides {sides} one after the other"
    rows, columns, *groups = shapes[0]
    return f"{rows} x {columns} a picture" + "".join(f", {count} at each position" for count in groups)


def layout_name(layout: dict) -> str:
    """The layout with its kind in words, such as "grid codes (4 x 4 a picture)"."""
    return f"{layout['kind']} codes ({layout_text(layout)})"


def flatten_codes(codes: torch.Tensor, layout: dict) -> torch.Tensor:
    """The flat sequence (B, T) of codes in their model's shape, or flat already.

    Raises:
        DataError: codes of another shape.
    """
    _require_shape(codes, layout)
    return codes.flatten(1)


def unflatten_codes(codes: torch.Tensor, layout: dict) -> torch.Tensor:
    """Codes in their model's shape, from the flat sequence (B, T), or in that shape already.

    Raises:
        DataError: codes of another shape.
    """
    _require_shape(codes, layout)
    return codes.reshape(len(codes), *codes_shape(layout))


def _require_shape(codes: torch.Tensor, layout: dict) -> None:
    shape, length = codes_shape(layout), sequence_length(layout)
    if codes.ndim > 0 and tuple(codes.shape[1:]) in (shape, (length,)):
        return
    expected = f"(B, {', '.join(map(str, shape))})" + (f" or flat (B, {length})" if shape != (length,) else "")
    raise DataError(
        f"codes must be {expected} for this tokenizer's {layout['kind']} layout, got {tuple(codes.shape)}; "
        "take the codes of the tokenizer that decodes them"
    )
