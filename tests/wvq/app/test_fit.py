"""The quick start's choice of fit: drawings of odd shapes are padded, photographs and squares cropped, and why."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.drawings import draw_letter
from wvq.app.fit import choose_fit
from wvq.data.dataset import load_images
from wvq.settings.data import DataConfig


def letter(number, ground="white"):
    picture = draw_letter("AMW"[number % 3], (30 + 7 * (number % 5), 60 - 7 * (number % 5)))
    if ground != "white":
        values = np.asarray(picture).astype(float)[..., :1] / 255
        picture = Image.fromarray((values * np.array(ground)).astype(np.uint8))
    return picture


def photograph(number, size=(90, 60)):
    """Coarse noise, as the border of a photograph is of many colours."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize(size)


def square(number):
    picture = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(picture).ellipse((5, 5, 35, 20 + number % 10), fill="red")
    return picture


@pytest.fixture
def choose(tmp_path):
    def make(*kinds, requested=None, count=40, **fields):
        folder = tmp_path / "pictures"
        folder.mkdir()
        for number in range(count):
            kinds[number % len(kinds)](number).save(folder / f"{number:03}.png")
        return choose_fit(load_images(DataConfig(path=str(folder), **fields)).train, requested)

    return make


def test_letters_on_white_are_padded_with_white(choose):
    choice = choose(letter)
    assert (choice.fit, choice.pad_color) == ("pad", "white")
    assert choice.reason.startswith("fit: pad with white; of 36 pictures looked at, a crop would cut ")
    assert choice.reason.endswith(" of them on a plain ground")


def test_letters_on_their_own_ground_are_padded_with_it(choose):
    choice = choose(letter, lambda number: letter(number, (90, 200, 160)))
    assert (choice.fit, choice.pad_color) == ("pad", "auto")


def test_photographs_are_cropped(choose):
    choice = choose(photograph)
    assert (choice.fit, choice.pad_color) == ("crop", "auto")
    assert choice.reason == "fit: crop; of 36 pictures looked at, a crop would cut 36, 0 of them on a plain ground"


def test_squares_and_a_few_others_are_cropped(choose):
    assert choose(square, *[square] * 14, letter).fit == "crop"


def test_the_shape_is_that_of_the_size(choose):
    """A picture of 90 x 60 fits 32 x 48, and squares do not."""
    choice = choose(square, image_size=[32, 48])
    assert (choice.fit, choice.pad_color) == ("pad", "white")


@pytest.mark.parametrize(("kind", "requested", "color"), [(letter, "crop", "auto"), (photograph, "pad", "auto")])
def test_the_choice_of_the_user(choose, kind, requested, color):
    choice = choose(kind, requested=requested)
    assert (choice.fit, choice.pad_color) == (requested, color)
    assert ", as requested; of 36 pictures" in choice.reason


def test_unreadable_pictures_are_passed_over(tmp_path):
    for number in range(30):
        letter(number).save(tmp_path / f"{number:03}.png")
    (tmp_path / "000.png").write_bytes(b"none")
    choice = choose_fit(load_images(DataConfig(path=str(tmp_path))).train)
    assert choice.fit == "pad"
