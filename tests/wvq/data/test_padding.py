"""Pads: nothing of a picture is lost, it lies where it should, on the ground that was asked for."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.drawings import draw_letter
from wvq.data.padding import center_pad, ground, random_pad, ten_pad
from wvq.data.pixels import center_crop
from wvq.settings.data import PAD_COLORS

RED, BLUE = (255, 0, 0), (0, 0, 255)


def box(image, ground="white"):
    """Left, top, right and bottom of what is not ground."""
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(Image.new("RGB", (1, 1), ground))).sum(-1) > 30
    rows, columns = np.flatnonzero(difference.any(1)), np.flatnonzero(difference.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def gradient(width, height):
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0], values[..., 1] = np.linspace(0, 255, width)[None], np.linspace(0, 255, height)[:, None]
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [32, [32, 48], [48, 32]])
@pytest.mark.parametrize("color", PAD_COLORS)
@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (7, 5), (64, 64), (1, 1), (1, 500), (5000, 2), (33, 31)])
def test_every_shape_gets_the_size(size, color, shape):
    height, width = (32, 32) if size == 32 else size
    rng = np.random.default_rng(0)
    pads = [center_pad(gradient(*shape), size, color), random_pad(gradient(*shape), size, 0.5, color, rng)]
    pads += [ten_pad(gradient(*shape), size, 0.7, color, version) for version in range(10)]
    assert {(pad.size, pad.mode) for pad in pads} == {((width, height), "RGB")}


def test_a_wide_picture_fills_the_width_and_lies_in_the_middle():
    pad = center_pad(Image.new("RGB", (80, 40), RED), 32, "white")
    assert box(pad) == (0, 8, 32, 24)
    assert center_pad(Image.new("RGB", (80, 40), RED), [16, 32], "white").getcolors() == [(16 * 32, RED)]
    assert box(center_pad(Image.new("RGB", (40, 80), RED), [32, 48], "white")) == (16, 0, 32, 32)


def test_a_picture_of_the_right_shape_is_that_of_the_crop():
    image = gradient(96, 64)
    for color in PAD_COLORS:
        assert center_pad(image, [32, 48], color).tobytes() == center_crop(image, [32, 48]).tobytes()


def test_the_ends_of_letters_are_kept():
    """A crop cuts the ends off a wide drawing; of a pad's, each column has the ink that it had, as large as it fits."""
    image = draw_letter("M", (96, 48))
    lost, kept = center_crop(image, 32), center_pad(image, 32, "auto")
    assert box(lost)[::2] == (0, 32)  # ink at the very edge
    left, top, right, bottom = box(image)
    expected = np.array([left, top, right, bottom]) / 3 + [0, 8, 0, 8]
    assert np.abs(np.array(box(kept)) - expected).max() <= 1


def test_the_ground_is_the_median_of_the_border():
    image = Image.new("RGB", (40, 20), (200, 220, 240))
    ImageDraw.Draw(image).rectangle((5, 0, 12, 10), fill=RED)  # a part of the border, and much of the inside
    assert ground(image) == (200, 220, 240)
    pad = center_pad(image, 32, "auto")
    assert pad.getpixel((0, 0)) == pad.getpixel((31, 31)) == (200, 220, 240)
    assert center_pad(image, 32, "white").getpixel((0, 0)) == (255, 255, 255)


def test_the_edge_goes_on():
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (0, 10, 40, 20))
    pad = np.asarray(center_pad(image, 40, "edge"))
    assert (pad[:18] == RED).all()
    assert (pad[-18:] == BLUE).all()


def test_transparent_pictures_lie_on_white():
    image = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 5, 30, 15))
    assert center_pad(image, 40, "auto").getpixel((0, 0)) == (255, 255, 255)


def test_random_pads_move_and_shrink_within_bounds():
    image = Image.new("RGB", (60, 60), RED)
    boxes = [box(random_pad(image, 32, 0.75, "white", np.random.default_rng(seed))) for seed in range(300)]
    assert boxes == [box(random_pad(image, 32, 0.75, "white", np.random.default_rng(seed))) for seed in range(300)]
    assert {right - left for left, _, right, _ in boxes} == set(range(24, 33))
    assert {bottom - top for _, top, _, bottom in boxes} == set(range(24, 33))
    assert min(left for left, *_ in boxes) == 0
    assert max(right for *_, right, _ in boxes) == 32
    assert len(set(boxes)) > 50


def test_a_picture_of_another_shape_moves_no_further_than_its_box():
    image = Image.new("RGB", (10, 60), RED)
    middles = []
    for seed in range(200):
        left, _, right, _ = box(random_pad(image, 32, 0.75, "white", np.random.default_rng(seed)))
        middles.append((left + right) / 2)
    assert 11 <= min(middles) < 13
    assert 19 < max(middles) <= 21
    assert random_pad(image, 32, 1.0, "auto", np.random.default_rng(0)).tobytes() == (
        center_pad(image, 32, "auto").tobytes()
    )
    left, _, right, _ = box(ten_pad(image, 32, 0.75, "white", 2))
    assert 19 < (left + right) / 2 <= 21


def test_ten_pads_are_the_middle_the_corners_and_their_mirror_images():
    image = Image.new("RGB", (60, 60), RED)
    image.paste(BLUE, (0, 0, 30, 60))
    pads = [ten_pad(image, 32, 0.75, "white", version) for version in range(10)]
    assert pads[0].tobytes() == center_pad(image, 32, "white").tobytes()
    corners = [(0, 0, 24, 24), (8, 0, 32, 24), (0, 8, 24, 32), (8, 8, 32, 32)]
    assert [box(pad) for pad in pads[1:5]] == corners
    for pad, mirrored in zip(pads[:5], pads[5:], strict=True):
        assert np.array_equal(np.asarray(mirrored), np.asarray(pad)[:, ::-1])


def test_large_pictures_are_halved_first():
    """Of single-pixel stripes bicubic resizing alone would skip lines."""
    values = np.zeros((512, 256, 3), np.uint8)
    values[::2] = 200
    pad = np.asarray(center_pad(Image.fromarray(values), 32, "white"))
    assert np.unique(pad[:, 8:24]).tolist() == [100]
