"""Pictures for both stages: `load_images` reads any source and holds some out, `ImageDataset` crops them."""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from wvq.errors import ConfigError, DataError
from wvq.images import center_crop, halve, largest_resize, random_crop, to_pixels, to_rgb
from wvq.recipes import DataConfig
from wvq.sources import read_source
from wvq.tables import PictureTable, hold_out, keep_classes, options, to_table

# Sets whose decoded pictures fit are decoded once and kept; larger ones stay on disk and are decoded on each access.
MEMORY_LIMIT_BYTES = 256 * 2**20


class PictureStore:
    """Decodes pictures, and keeps them in memory if the whole set fits in ``MEMORY_LIMIT_BYTES``.

    Prepared pictures are RGB and halved as far as every crop of at most ``largest_side`` would halve them first anyway:
    a crop of a prepared picture equals the crop of its original to the bit.
    """

    def __init__(self, pictures: datasets.Dataset, largest_side: int):
        self.pictures = pictures
        self.largest_side = largest_side
        self.kept: list[Image.Image | None] | None = None
        self.fits: bool | None = None

    def original(self, index: int) -> Image.Image:
        """The picture as stored, upright. Raises DataError that names the file if it cannot be decoded."""
        encoded = self.pictures[index]["image"]
        try:
            image = datasets.Image().decode_example(encoded)
            image.load()
        # Pillow's decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error and more.
        except Exception as error:
            name = (encoded or {}).get("path") or f"picture {index}"
            kind = type(error).__name__
            raise DataError(f"{name} cannot be read as a picture ({kind}); replace it or take it out") from error
        return image

    def prepared(self, index: int) -> Image.Image:
        """The RGB picture to crop from."""
        if self.fits is None:
            self.fits = self._estimate_bytes() <= MEMORY_LIMIT_BYTES
            self.kept = [None] * len(self.pictures) if self.fits else None
        if self.kept is None:
            return self._prepare(index)
        if self.kept[index] is None:
            self.kept[index] = self._prepare(index)
        return self.kept[index]

    def _prepare(self, index: int) -> Image.Image:
        return halve(to_rgb(self.original(index)), self.largest_side)

    def _estimate_bytes(self) -> float:
        probes = np.unique(np.linspace(0, len(self.pictures) - 1, 8).astype(int))
        sizes = [self._prepare(int(index)).size for index in probes]
        return len(self.pictures) * 3 * float(np.mean([width * height for width, height in sizes]))


class ImageDataset(Dataset):
    """Square crops of a set of pictures.

    A key is an index or a pair ``(position, index)``, where position counts the pictures drawn since the run began.
    Crop and flip depend on the data seed and the position (or the index alone) only: a resumed run, with any number
    of workers, sees the same pixels again.

    An item is a dict: ``pixel_values`` float32 (3, S, S) in [-1, 1], ``label`` int (-1: none), ``index`` int.

    Attributes:
        class_names: names by label id; empty without classes.
        labels: list of class ids, or None without classes.
        captions: list of texts, or None without captions.
        image_size: S, the side in pixels.
        crop_recipe: the augmentation in short, such as ``center`` or ``random(0.8)+flip``.
    """

    def __init__(
        self,
        table: PictureTable,
        class_names: tuple[str, ...] = (),
        *,
        image_size: int,
        crop: str = "center",
        min_crop_fraction: float = 0.8,
        flip: bool = False,
        seed: int = 0,
        store: PictureStore | None = None,
    ):
        _check_crop(image_size, crop, min_crop_fraction, seed)
        self.table = table
        self.class_names = tuple(class_names)
        self.image_size = image_size
        self.crop = crop
        self.min_crop_fraction = min_crop_fraction
        self.flip = flip
        self.seed = seed
        self.store = store or PictureStore(table.pictures, largest_resize(image_size, min_crop_fraction))

    @property
    def labels(self) -> list[int] | None:
        return self.table.labels

    @property
    def captions(self) -> list[str] | None:
        return self.table.captions

    @property
    def crop_recipe(self) -> str:
        crop = f"random({self.min_crop_fraction:g})" if self.crop == "random" else self.crop
        return crop + ("+flip" if self.flip else "")

    def with_crop(self, crop: str | None = None, flip: bool | None = None) -> ImageDataset:
        """The same pictures under another crop (``random`` or ``center``) or flip; decoded pictures are shared."""
        return ImageDataset(
            self.table,
            self.class_names,
            image_size=self.image_size,
            crop=self.crop if crop is None else crop,
            min_crop_fraction=self.min_crop_fraction,
            flip=self.flip if flip is None else flip,
            seed=self.seed,
            store=self.store,
        )

    def picture(self, index: int) -> Image.Image:
        """The original picture. Raises DataError that names the file if it cannot be decoded."""
        return self.store.original(self._checked(index))

    def __len__(self) -> int:
        return len(self.table.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        position, index = key if isinstance(key, tuple) else (key, key)
        index = self._checked(index)
        rng = np.random.default_rng((self.seed, int(position) if isinstance(key, tuple) else index))
        image = self.store.prepared(index)
        if self.crop == "random":
            image = random_crop(image, self.image_size, self.min_crop_fraction, rng)
        else:
            image = center_crop(image, self.image_size)
        if self.flip and rng.random() < 0.5 and (self.table.flippable is None or self.table.flippable[index]):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label = -1 if self.labels is None else self.labels[index]
        return {"pixel_values": to_pixels(image), "label": label, "index": index}

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} pictures")
        return int(index) % len(self)


@dataclass
class ImageSplits:
    """What :func:`load_images` returns.

    Args:
        train: training pictures under the configured crop and flip.
        validation: held-out pictures, centre crop, never flipped.
        class_names: names by label id; empty if the data is unlabelled.
        source: what was read, for cache headers and model cards.
    """

    train: ImageDataset
    validation: ImageDataset
    class_names: tuple[str, ...]
    source: str


def load_images(config: DataConfig) -> ImageSplits:
    """Read the pictures that ``config`` describes and hold some out for validation.

    The held-out pictures are the split ``config.validation_split``, or the split ``validation`` if the data has one, or
    else ``config.validation_fraction`` of the training split: that share of every class, the same for every choice of
    ``config.classes``, with near twins on one side.

    Raises:
        ConfigError: a number out of range.
        DataError: what is not there (folder, split, column, class) or cannot be read.
        DownloadError: a Hub id that cannot be reached.
    """
    _check_crop(config.image_size, config.crop, config.min_crop_fraction, config.seed)
    fraction = config.validation_fraction
    if not 0 < fraction < 1:
        raise ConfigError(f"validation_fraction must be above 0 and below 1, not {fraction}")
    splits = read_source(config)
    train, class_names = to_table(_named_split(splits, config.train_split, "train_split"), config)
    validation_split = config.validation_split or ("validation" if "validation" in splits else None)
    if validation_split is None:
        held_out = hold_out(train, class_names, fraction, config.seed)
        train, validation = train.select(np.flatnonzero(~held_out)), train.select(np.flatnonzero(held_out))
    else:
        raw_validation = _named_split(splits, validation_split, "validation_split")
        validation, _ = to_table(raw_validation, config, class_names)
    if config.classes is not None:
        all_names = class_names
        train, class_names = keep_classes(train, all_names, config.classes)
        validation, _ = keep_classes(validation, all_names, config.classes)
    for name, table in (("training", train), ("validation", validation)):
        if not len(table):
            raise DataError(f"path: {config.path} leaves no {name} pictures; check the splits, classes and fraction")

    common = {"image_size": config.image_size, "min_crop_fraction": config.min_crop_fraction, "seed": config.seed}
    return ImageSplits(
        train=ImageDataset(train, class_names, crop=config.crop, flip=config.flip, **common),
        validation=ImageDataset(validation, class_names, **common),
        class_names=class_names,
        source=config.path if config.subset is None else f"{config.path}/{config.subset}",
    )


def _check_crop(image_size: int, crop: str, min_crop_fraction: float, seed: int) -> None:
    if image_size < 1:
        raise ConfigError(f"image_size must be at least 1 pixel, not {image_size}")
    if crop not in ("random", "center"):
        raise ConfigError(f"crop must be random or center, not {crop!r}")
    if not 0 < min_crop_fraction <= 1:
        raise ConfigError(f"min_crop_fraction must be above 0 and at most 1, not {min_crop_fraction}")
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, not {seed}")


def _named_split(splits: datasets.DatasetDict, name: str, field: str) -> datasets.Dataset:
    if name not in splits:
        raise DataError(f"{field}: the data has no split {name!r}{options(name, splits)}")
    return splits[name]
