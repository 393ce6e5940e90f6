"""Folders of tiny pictures: coloured shapes on a light ground, a folder a shape."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (240, 200, 40)}
SHAPES = ("circle", "cross", "square")
PER_CLASS = 20


def draw_shape(shape: str, color: str, rng: np.random.Generator, size: int = 24) -> Image.Image:
    """A shape of one colour on a light ground, a little off the middle."""
    picture = Image.new("RGB", (size, size), tuple(int(v) for v in rng.integers(225, 256, 3)))
    pen = ImageDraw.Draw(picture)
    left, top = (int(v) for v in rng.integers(3, 7, 2))
    right, bottom = left + 14, top + 14
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=COLORS[color])
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=COLORS[color])
    else:
        pen.rectangle((left, top + 5, right, bottom - 5), fill=COLORS[color])
        pen.rectangle((left + 5, top, right - 5, bottom), fill=COLORS[color])
    return picture


def draw_letter(letter: str, size: tuple[int, int], color: str = "black") -> Image.Image:
    """A letter stretched over nearly all of a white picture of (width, height)."""
    font = ImageFont.load_default(size=64)
    left, top, right, bottom = (int(side) for side in font.getbbox(letter))
    glyph = Image.new("RGB", (right - left, bottom - top), "white")
    ImageDraw.Draw(glyph).text((-left, -top), letter, fill=color, font=font)
    picture = Image.new("RGB", size, "white")
    picture.paste(glyph.resize((size[0] - 6, size[1] - 6)), (3, 3))
    return picture


def write_letters(folder: Path, count: int = 40) -> None:
    """Write wide and tall letters in the class folders ``A`` and ``M``."""
    for number in range(count):
        letter, width = "AM"[number % 2], 20 + number % 4 * 20
        (folder / letter).mkdir(parents=True, exist_ok=True)
        draw_letter(letter, (width, 100 - width), list(COLORS)[number % 3]).save(folder / letter / f"{number:02d}.png")


def write_pictures(folder: Path, per_class: int = PER_CLASS, seed: int = 0) -> list[tuple[str, str, str]]:
    """Write ``shape/00.png`` pictures; return (file name, shape, colour) of each."""
    rng = np.random.default_rng(seed)
    rows = []
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for i in range(per_class):
            color = list(COLORS)[i % len(COLORS)]
            name = f"{shape}/{i:02d}.png"
            draw_shape(shape, color, rng).save(folder / name)
            rows.append((name, shape, color))
    return rows
