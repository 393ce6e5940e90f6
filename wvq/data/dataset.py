"""Pictures for both stages: `load_images` reads any source and holds some out, `ImageDataset` crops them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from wvq.data.inventory import Inventory
from wvq.data.padding import center_pad, random_pad, ten_pad
from wvq.data.pictures import PictureStore
from wvq.data.pixels import TEN, center_crop, largest_resize, random_crop, scaled_ten_crop, ten_crop, to_pixels
from wvq.data.sources import read_source
from wvq.data.splits import hold_out
from wvq.data.tables import PictureTable, keep_classes, options, to_table, warn_of_missing_captions
from wvq.data.unreadable import probe
from wvq.errors import DataError, UnreadablePictureError
from wvq.settings.data import DataConfig
from wvq.settings.size import height_width

MOST_DRAWS = 100  # before a set counts as one without readable pictures


class ImageDataset(Dataset[dict[str, Any]]):
    """Pictures of one size, cropped or padded, of a set of pictures.

    A key is an index or a pair ``(position, index)``, where position counts the pictures drawn since the run began.
    Crop and flip depend on the data seed and the position (or the index alone) only: a resumed run, with any number
    of workers, sees the same pixels again.

    An item is a dict: ``pixel_values`` float32 (3, H, W) in [-1, 1], ``label`` int (-1: none), ``index`` int, and
    ``requested`` int, the index that was requested.

    A picture that cannot be read raises UnreadablePictureError under an index. Under a pair, which is how training
    draws, and with ``unreadable`` set to ``skip``, another picture drawn at random from the seed and the pair takes its
    place: ``index`` then differs from ``requested``. Passes that must not replace any go through
    :class:`wvq.data.unreadable.Reading`.

    Args:
        table: the pictures, with their classes and captions.
        class_names: names by label id; empty without classes.
        settings: size, fit, crop, flip, seed, and what happens with pictures that cannot be read; no other field
            counts.
        store: decoded pictures of another view of the same table, to be shared.

    Attributes:
        image_size: in pixels: the side of a square, or [height, width].
        crop: ``random``, ``ten`` or ``center``.
        unreadable: ``skip`` or ``refuse``.
        spread: whether ``ten`` begins with another crop for each picture; see :meth:`spread_versions`.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        table: PictureTable,
        class_names: tuple[str, ...],
        settings: DataConfig,
        store: PictureStore | None = None,
    ):
        settings.check()
        self.table = table
        self.class_names = tuple(class_names)
        self.settings = replace(settings)  # a later change by the caller does not affect this set
        self.image_size, self.crop, self.unreadable = settings.size, settings.crop, settings.unreadable
        self.spread = False
        self.store = store or PictureStore(table.pictures, *_largest(settings))

    @property
    def labels(self) -> list[int] | None:
        """Class id of each picture, -1 for none; None if the data has no classes."""
        return self.table.labels

    @property
    def captions(self) -> list[str] | None:
        """The first caption of each picture; None if the data has no captions."""
        return self.table.captions

    @property
    def texts(self) -> list[tuple[str, ...]] | None:
        """All captions of each picture; None if the data has no captions."""
        return self.table.texts

    @property
    def crop_recipe(self) -> str:
        """How pictures are cut out, such as ``random(0.8)+flip``, or padded: ``center, pad(auto)``."""
        settings = self.settings
        if settings.crop_scales:
            return f"ten({', '.join(f'x{scale:g}' for scale in settings.crop_scales)})"
        crop = self.crop if self.crop == "center" else f"{self.crop}({settings.min_crop_fraction:g})"
        pad = f", pad({settings.pad_color})" if settings.fit == "pad" else ""
        return crop + ("+flip" if settings.flip else "") + pad

    def with_crop(self, crop: str | None = None, flip: bool | None = None) -> ImageDataset:
        """The same pictures under another crop (``random``, ``ten``, ``center``) or flip; decoded ones are shared."""
        settings = replace(
            self.settings,
            crop=self.crop if crop is None else crop,
            flip=self.settings.flip if flip is None else flip,
            crop_scales=self.settings.crop_scales if crop in (None, "ten") else None,
            unreadable=self.unreadable,
        )
        return ImageDataset(self.table, self.class_names, settings, self.store)

    @property
    def num_versions(self) -> int:
        """How many crops ``ten`` takes in turn."""
        return TEN * len(self.settings.crop_scales or (1,))

    def spread_versions(self) -> ImageDataset:
        """The same pictures for training: under ``ten`` each picture starts with a crop of its own.

        A pass then shows all of them about equally often, and each picture still has every crop once in as many passes.
        Otherwise all pictures of pass p have crop p, as an export needs.
        """
        spread = copy.copy(self)
        spread.spread = True
        return spread

    def picture(self, index: int) -> Image.Image:
        """The original picture. Raises UnreadablePictureError that names the file if it cannot be decoded."""
        return self.store.original(self._checked(index))

    def __len__(self) -> int:
        return len(self.table.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        image, index, requested = self.cropped(key)
        label = -1 if self.labels is None else self.labels[index]
        return {"pixel_values": to_pixels(image), "label": label, "index": index, "requested": requested}

    def cropped(self, key: int | tuple[int, int]) -> tuple[Image.Image, int, int]:
        """The picture of a key at its size, with the index shown and the index requested."""
        drawn = isinstance(key, tuple)
        if isinstance(key, tuple):
            position, requested = int(key[0]), self._checked(key[1])
        else:
            position = requested = self._checked(key)
        rng = np.random.default_rng((self.settings.seed, position))
        if drawn and self.unreadable == "skip":
            index, image = self._readable(position, requested)
        else:
            index, image = requested, self.store.prepared(requested)
        if self.crop == "ten":
            image = self._one_of_ten(image, self._version(index, position // len(self) if drawn else 0))
        else:
            image = self._padded(image, rng) if self.settings.fit == "pad" else self._cut(image, rng)
        if self.settings.flip and rng.random() < 0.5 and self._mirrors(index):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image, index, requested

    def _cut(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.crop == "random":
            return random_crop(image, self.image_size, self.settings.min_crop_fraction, rng)
        return center_crop(image, self.image_size)

    def _padded(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        settings = self.settings
        if self.crop == "random":
            return random_pad(image, self.image_size, settings.min_crop_fraction, settings.pad_color, rng)
        return center_pad(image, self.image_size, settings.pad_color)

    def _version(self, index: int, turn: int) -> int:
        """Which crop a picture has when it is drawn for the ``turn``-th time."""
        versions = self.num_versions
        if self.spread:
            # Steps without a common divisor reach all versions, and do not show five mirror images in a row.
            step = next(step for step in (7, 13, 17) if versions % step)
            turn = int(np.random.default_rng((self.settings.seed, index)).integers(versions)) + step * turn
        version = turn % versions
        if not self._mirrors(index) and version % TEN >= TEN // 2:
            version -= TEN // 2
        return version

    def _one_of_ten(self, image: Image.Image, version: int) -> Image.Image:
        settings = self.settings
        if settings.fit == "pad":
            return ten_pad(image, self.image_size, settings.min_crop_fraction, settings.pad_color, version)
        if settings.crop_scales:
            return scaled_ten_crop(image, self.image_size, settings.crop_scales, version)
        return ten_crop(image, self.image_size, settings.min_crop_fraction, version)

    def _mirrors(self, index: int) -> bool:
        """Whether the picture's mirror image means the same."""
        return self.table.flippable is None or self.table.flippable[index]

    def _readable(self, position: int, requested: int) -> tuple[int, Image.Image]:
        """The requested picture, or else one drawn at random: the next in line would be seen twice as often."""
        index, draws = requested, None
        for _ in range(MOST_DRAWS):
            try:
                return index, self.store.prepared(index)
            except UnreadablePictureError as error:
                last = error
            draws = draws or np.random.default_rng((self.settings.seed, position, requested))
            index = int(draws.integers(len(self)))
        raise DataError(f"{MOST_DRAWS} pictures drawn at random cannot be read; the last: {last}")

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} pictures")
        return int(index) % len(self)


def _largest(settings: DataConfig) -> tuple[tuple[int, int], bool]:
    """The largest box that a picture is resized for, and whether it is to fit inside."""
    if settings.fit == "pad":
        return height_width(settings.size), True
    return largest_resize(settings.size, settings.min_crop_fraction, settings.crop_scales or ()), False


@dataclass
class ImageSplits:
    """Result of :func:`load_images`: training and held-out pictures.

    Args:
        train: training pictures under the configured crop and flip.
        validation: held-out pictures, centre crop, never flipped.
        class_names: names by label id; empty if the data is unlabelled.
        source: what was read, for cache headers and model cards.
        inventory: how it was understood, how much there is, and what was passed over.
    """

    train: ImageDataset
    validation: ImageDataset
    class_names: tuple[str, ...]
    source: str
    inventory: Inventory


def load_images(config: DataConfig) -> ImageSplits:
    """Read the pictures that ``config`` describes and hold some out for validation.

    The held-out pictures are the split ``config.validation_split``, or the split ``validation`` if the data has one, or
    else ``config.validation_fraction`` of the training split: that share of every class, the same for every choice of
    ``config.classes``, with near twins on one side.

    Raises:
        ConfigError: a number out of range.
        DataError: what is not there (folder, split, column, class) or cannot be read: of the pictures, a few from all
            over each split are tried.
        DownloadError: a Hub id that cannot be reached.
    """
    config.check()
    inventory = Inventory()
    splits = read_source(config, inventory)
    train, class_names = to_table(_named_split(splits, config.train_split, "data.train_split"), config)
    validation_split = config.validation_split or ("validation" if "validation" in splits else None)
    if validation_split is None:
        held_out = hold_out(train, class_names, config.validation_fraction, config.seed)
        train, validation = train.select(np.flatnonzero(~held_out)), train.select(np.flatnonzero(held_out))
        held_out_as = f"{100 * config.validation_fraction:.3g}% of {'each class' if class_names else 'all'}"
    else:
        raw_validation = _named_split(splits, validation_split, "data.validation_split")
        validation, _ = to_table(raw_validation, config, class_names)
        held_out_as = f"the split {validation_split}"
    if config.classes is not None:
        all_names = class_names
        train, class_names = keep_classes(train, all_names, config.classes)
        validation, _ = keep_classes(validation, all_names, config.classes)
    for name, table in (("training", train), ("validation", validation)):
        if not len(table):
            raise DataError(f"data.path: {config.path} leaves no {name} pictures; check splits, classes and fraction")

    inventory.count(train, validation, class_names, held_out_as)
    warn_of_missing_captions(train, validation)
    centred = replace(config, crop="center", flip=False, crop_scales=None)
    images = ImageSplits(
        train=ImageDataset(train, class_names, config),
        validation=ImageDataset(validation, class_names, centred),
        class_names=class_names,
        source=config.path if config.subset is None else f"{config.path}/{config.subset}",
        inventory=inventory,
    )
    for dataset in (images.train, images.validation):
        probe(dataset)
    return images


def _named_split(splits: datasets.DatasetDict, name: str, field: str) -> datasets.Dataset:
    if name not in splits:
        raise DataError(f"{field}: the data has no split {name!r}{options(name, splits)}")
    return splits[name]
