"""Contact sheets: many pictures in one, with captions or labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from wvq.data.pixels import to_pil, to_rgb
from wvq.errors import DataError


def image_grid(
    images: Sequence[Image.Image] | torch.Tensor,
    columns: int,
    scale: int = 1,
    padding: int = 2,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Pictures side by side on white, row by row; a contact sheet.

    Args:
        images: pictures, or pixels (B, 3, H, W) in [-1, 1].
        columns: pictures in a row.
        scale: whole-number enlargement, by pixel repetition.
        padding: white pixels around every picture.
        captions: one short text below each picture, cut to its width.

    Raises:
        DataError: no pictures, a number below one, or another number of captions than of pictures.
    """
    images = to_pil(images) if isinstance(images, torch.Tensor) else [to_rgb(image) for image in images]
    if not images:
        raise DataError("images is empty: a grid needs at least one picture")
    if columns < 1 or scale < 1 or padding < 0:
        raise DataError(f"columns and scale must be at least 1 and padding 0, not {columns}, {scale} and {padding}")
    if captions is not None and len(captions) != len(images):
        raise DataError(f"captions must match images: {len(captions)} captions for {len(images)} pictures")

    line_height = 0 if captions is None else 14
    width = max(image.width for image in images) * scale
    height = max(image.height for image in images) * scale
    cell_width, cell_height = width + 2 * padding, height + line_height + 2 * padding
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * cell_width, rows * cell_height), "white")
    corners = [
        (index % columns * cell_width + padding, index // columns * cell_height + padding)
        for index in range(len(images))
    ]
    for image, corner in zip(images, corners, strict=True):
        sheet.paste(image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST), corner)
    if captions is not None:
        draw, font = ImageDraw.Draw(sheet), _caption_font()
        for caption, (left, top) in zip(captions, corners, strict=True):
            draw.text((left, top + height), _cut_to_width(caption, font, width), fill="black", font=font)
    return sheet


def labelled_rows(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], scale: int = 1, padding: int = 2, label_width: int = 110
) -> Image.Image:
    """One row of pictures for each (label, pictures), the label at its left.

    Args:
        rows: labels and pictures; the pictures of all rows have one size.
        scale: whole-number enlargement, by pixel repetition.
        padding: white pixels around every picture.
        label_width: pixels kept for the labels; longer ones are cut.

    Raises:
        DataError: no rows, or a row without pictures.
    """
    if not rows:
        raise DataError("rows is empty: a sheet needs at least one row")
    grids = [image_grid(pictures, len(pictures), scale, padding) for _, pictures in rows]
    width = label_width + max(grid.width for grid in grids)
    sheet = Image.new("RGB", (width, sum(grid.height for grid in grids)), "white")
    draw, font, top = ImageDraw.Draw(sheet), _caption_font(13), 0
    for (label, _), grid in zip(rows, grids, strict=True):
        sheet.paste(grid, (label_width, top))
        text = _cut_to_width(label, font, label_width - 2 * padding)
        draw.text((padding, top + grid.height // 2), text, fill="black", font=font, anchor="lm")
        top += grid.height
    return sheet


def _caption_font(size: int = 10) -> ImageFont.FreeTypeFont:
    # Pillow's own default font has no accented letters.
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _cut_to_width(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""
