"""Makes a cache for the generator of the token files of other projects (:mod:`wvq.data.token_files`).

    wvq import-codes path/to/imagenet256_codes --tokenizer runs/llamagen --out runs/codes

Files are read picture by picture, and rows go to disk as they come. With the tokenizer at hand the cache names it; with
the pictures too, the codes of some are compared with those that the tokenizer makes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm import tqdm

import wvq
from wvq.data.code_tables import finish_table, row_features, write_shard
from wvq.data.codes import SPLITS, CodeDataset, CodeHeader
from wvq.data.imagenet import IMAGENET_CLASSES, folders_by_name, imagenet_classes
from wvq.data.layout import make_layout, sequence_length
from wvq.data.pictures import read_picture
from wvq.data.pixels import center_crop, to_pixels, to_uint8
from wvq.data.token_files import TokenFiles, TokenPicture, find_token_files
from wvq.errors import CacheError, DataError
from wvq.files.atomic import whole_folder
from wvq.files.locks import sole_writer
from wvq.files.plain_text import text_lines
from wvq.files.stage_folder import refuse_data_folder, refuse_occupied
from wvq.settings.size import height_width
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.picture_metrics import psnr
from wvq.tokenizer.recipes import ImportCodesRecipe

PIXELS_A_CODE = 16  # a side, where no tokenizer says otherwise: that of all published token files
ROWS_AT_ONCE = 4_096
CHECKED = 32
LEAST_EQUAL = 0.5  # share of equal codes; those of other pictures or of another tokenizer agree in hardly any
# Index of the centre crop among ten: the corners come first, and the mirror images last.
_CENTRE_OF_TEN = 4
# Crops were cut out of pictures of these sizes, as ratios to the size of a crop.
_SCALES = (1.0, 1.05, 1.1)


def import_codes(recipe: ImportCodesRecipe) -> CodeHeader:
    """Make a cache of token files in ``recipe.out``; the folder appears when it is complete and checked.

    Raises:
        ConfigError: bad settings, or a folder that holds something.
        DataError: token files that are missing, damaged, or do not fit each other or the settings.
        CheckpointError, DownloadError: the tokenizer cannot be loaded.
        CacheError: the codes are not those of the pictures.
    """
    recipe.check()
    refuse_occupied(recipe.out, "files")
    refuse_data_folder(recipe.out, recipe.source, "codes")
    if recipe.pictures is not None:
        refuse_data_folder(recipe.out, recipe.pictures)
    tokenizer = None if recipe.tokenizer is None else WassersteinVQModel.from_pretrained(recipe.tokenizer)
    files = find_token_files(Path(recipe.source), recipe.num_crops)
    given = [] if recipe.class_names is None else text_lines(recipe.class_names, "class_names", "names")
    if files.count < 2:
        raise DataError(f"{recipe.source} holds one picture; a cache needs one to train on and one to hold out")
    held_out = np.zeros(files.count, bool)
    order = np.random.default_rng(recipe.seed).permutation(files.count)
    held_out[order[: min(files.count - 1, max(1, round(recipe.validation_fraction * files.count)))]] = True
    chosen = {"train": ~held_out, "validation": held_out}
    first = next(files.read(chosen["train"]))
    if recipe.pictures is not None:  # before all codes are read
        files.picture_files([first.name], Path(recipe.pictures))
    header = _header(recipe, files, first, tokenizer, {split: int(mask.sum()) for split, mask in chosen.items()})
    with sole_writer(recipe.out), whole_folder(recipe.out) as folder:
        classes = 0
        for split in SPLITS:
            rows = _Rows(header, first, recipe, len(given or files.class_names) or None)
            _write(folder / split, header, rows.batches(files.read(chosen[split]), split))
            classes = max(classes, rows.classes)
        header.class_names = given or _class_names(files.class_names, classes)
        header.save(folder)
        if tokenizer is not None and recipe.pictures is not None:
            header.psnr_rgb["train"] = _self_check(folder, recipe, files, chosen["train"], tokenizer)
            header.save(folder)
    return header


def _class_names(folders: list[str], count: int) -> list[str]:
    """Names of classes by the folders that they come from, or by their number: those of ImageNet, or the ids."""
    if folders:
        return folders_by_name(folders)
    return imagenet_classes() if count == IMAGENET_CLASSES else [str(number) for number in range(count)]


def _header(
    recipe: ImportCodesRecipe,
    files: TokenFiles,
    first: TokenPicture,
    tokenizer: WassersteinVQModel | None,
    num_images: dict[str, int],
) -> CodeHeader:
    """The header without the names of the classes, which are known when all labels have been read.

    Raises:
        DataError: the number of codes is not that of the tokenizer or of the grid.
    """
    num_crops, length = first.codes.shape
    if tokenizer is not None:
        config = tokenizer.config
        grid, layout, size, num_codes = list(config.grid), config.code_layout, config.image_size, config.num_codes
        if length != (expected := sequence_length(layout)):
            raise DataError(
                f"{first.name} has {length} codes, and the tokenizer in {recipe.tokenizer} makes {expected}"
            )
    else:
        grid = recipe.grid or [math.isqrt(length)] * 2
        layout, num_codes = make_layout((grid[0], grid[1])), recipe.num_codes or files.num_codes
        rows, columns = (PIXELS_A_CODE * side for side in grid)
        size = recipe.image_size or (rows if rows == columns else [rows, columns])
        if length != grid[0] * grid[1]:
            raise DataError(f"{first.name} has {length} codes, which make no grid of {grid[0]} x {grid[1]}; give grid")
    return CodeHeader(
        tokenizer_hash="" if tokenizer is None else tokenizer.codes_hash(),
        num_codes=num_codes,
        grid=grid,
        layout=layout,
        image_size=size,
        crop_recipe={"train": "as the files were made", "validation": "the first crop of the files"},
        num_crops=num_crops,
        class_names=[],
        source=recipe.source,
        num_images=num_images,
        has_captions=False,
        library_version=wvq.__version__,
    )


class _Rows:
    """Checks pictures against the header, and makes rows of them.

    Attributes:
        classes: one more than the highest class so far.
    """

    def __init__(self, header: CodeHeader, first: TokenPicture, recipe: ImportCodesRecipe, known: int | None):
        self.header, self.first, self.recipe, self.known, self.classes = header, first, recipe, known, 0

    def batches(self, pictures: Iterable[TokenPicture], split: str) -> Iterator[dict[str, Any]]:
        """Batches as :func:`wvq.data.code_tables.write_shard` takes them; a held-out picture has one row.

        Raises:
            DataError: a picture does not fit the others or the header.
        """
        waiting: list[npt.NDArray[np.int64]] = []
        labels: list[int] = []
        total = self.header.num_images[split]
        for picture in tqdm(pictures, total=total, unit="img", desc=f"codes, {split}"):
            self._check(picture)
            codes = _centre_first(picture.codes)
            codes = codes if split == "train" else codes[:1]
            waiting.append(codes)
            labels += [picture.label] * len(codes)
            if len(labels) >= ROWS_AT_ONCE:
                yield _batch(waiting, labels)
                waiting, labels = [], []
        if labels:
            yield _batch(waiting, labels)

    def _check(self, picture: TokenPicture) -> None:
        name, codes = picture.name, picture.codes
        if codes.shape != self.first.codes.shape:
            (crops, length), (others, expected) = codes.shape, self.first.codes.shape
            raise DataError(
                f"{name} has {crops} crops of {length} codes, and {self.first.name} {others} of {expected}; all "
                "pictures of a cache have as many"
            )
        if codes.min() < 0 or codes.max() >= self.header.num_codes:
            fix = "another tokenizer made them" if self.recipe.tokenizer else "give num_codes"
            raise DataError(
                f"{name} has codes from {codes.min()} to {codes.max()}, not below {self.header.num_codes:,}; {fix}"
            )
        if self.known is not None and picture.label >= self.known:
            raise DataError(f"{name} is of class {picture.label}, and there are names of {self.known:,} classes")
        self.classes = max(self.classes, picture.label + 1)


def _centre_first(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Codes (crops, T), of ten crops with that of the centre first: held-out pictures have the first crop alone."""
    if len(codes) != 10:
        return codes
    return codes[[_CENTRE_OF_TEN, *(crop for crop in range(10) if crop != _CENTRE_OF_TEN)]]


def _batch(codes: list[npt.NDArray[np.int64]], labels: list[int]) -> dict[str, Any]:
    return {"codes": torch.from_numpy(np.concatenate(codes)), "label": labels, "caption": [[]] * len(labels)}


def _write(folder: Path, header: CodeHeader, batches: Iterator[dict[str, Any]]) -> None:
    """Write the table of a split.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    features, name = row_features(header.num_codes, header.sequence_length), "data-00000-of-00001.arrow"
    try:
        rows = write_shard(folder / name, batches, features)
    except OSError as error:
        raise DataError(f"{folder} could not be written ({error.strerror or error}); make room") from error
    content = json.dumps([header.source, header.num_images, folder.name, rows])
    finish_table(folder, [name], features, hashlib.sha256(content.encode()).hexdigest()[:32])


@torch.no_grad()
def _self_check(
    folder: Path,
    recipe: ImportCodesRecipe,
    files: TokenFiles,
    chosen: npt.NDArray[np.bool_],
    tokenizer: WassersteinVQModel,
) -> float:
    """Compare rows with the codes that the tokenizer makes of their pictures; return the rows' PSNR in dB.

    Raises:
        CacheError: they are not those of the pictures.
        DataError: the pictures cannot be found.
    """
    cache = CodeDataset(folder)
    places = np.random.default_rng(0).permutation(len(cache))[:CHECKED]
    picked = np.zeros_like(chosen)
    picked[np.flatnonzero(chosen)[np.sort(places)]] = True
    sources = files.picture_files([picture.name for picture in files.read(picked)], Path(recipe.pictures or ""))
    codes = cache.codes(np.sort(places) * cache.num_crops)
    images = [read_picture(file) for file in sources]
    equal, best = 0.0, torch.empty(0)
    for scale in _SCALES:
        pixels = torch.stack([to_pixels(_centre(image, tokenizer.config.image_size, scale)) for image in images])
        share = (tokenizer.encode(pixels).codes.flatten(1) == codes).float().mean().item()
        if share > equal:
            equal, best = share, pixels
    print(f"{equal:.1%} of the codes of {len(codes)} pictures are those that {recipe.tokenizer} makes of them")
    if equal < LEAST_EQUAL:
        raise CacheError(
            f"{equal:.1%} of the codes of {len(codes)} pictures are those that {recipe.tokenizer} makes of them: they "
            "are of other pictures, or another tokenizer made them"
        )
    return round(psnr(to_uint8(tokenizer.decode_codes(codes)), to_uint8(best)).mean().item(), 3)


def _centre(image: Image.Image, size: Any, scale: float) -> Image.Image:
    """The central crop of a picture that covers ``scale`` times the size."""
    height, width = height_width(size)
    image = center_crop(image, (int(height * scale), int(width * scale)))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
