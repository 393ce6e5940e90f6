"""Pictures for both stages: `load_images` reads any source and holds some out, `ImageDataset` shows them cropped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from wvq.data.crops import CroppedPictures, largest_box
from wvq.data.inventory import Inventory
from wvq.data.pictures import PictureStore
from wvq.data.pixels import to_pixels
from wvq.data.sources import read_source
from wvq.data.splits import hold_out
from wvq.data.tables import PictureTable, keep_classes, named_split, to_table, warn_of_missing_captions
from wvq.data.unreadable import probe
from wvq.errors import ConfigError, DataError, UnreadablePictureError
from wvq.settings.data import DataConfig

MOST_DRAWS = 100  # before a set counts as one without readable pictures


class ImageDataset(CroppedPictures):
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
        class_names, settings: as of :class:`CroppedPictures`.
        store: decoded pictures of another view of the same table, to be shared.
    """

    def __init__(
        self,
        table: PictureTable,
        class_names: tuple[str, ...],
        settings: DataConfig,
        store: PictureStore | None = None,
    ):
        super().__init__(class_names, settings)
        self.table = table
        self.store = store or PictureStore(table.pictures, *largest_box(settings))

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

    def picture(self, index: int) -> Image.Image:
        """The original picture. Raises UnreadablePictureError that names the file if it cannot be decoded."""
        return self.store.original(self._checked(index))

    def __len__(self) -> int:
        return len(self.table.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        image, index, requested = self.cropped(key)
        return {"pixel_values": to_pixels(image), "label": self.label_of(index), "index": index, "requested": requested}

    @property
    def has_captions(self) -> bool:
        """Whether the data has captions."""
        return self.texts is not None

    def identity(self) -> str:
        """SHA-256 over what the pictures and their order depend on; their content is not read."""
        return self.table.identity()

    def texts_of(self, index: int) -> tuple[str, ...]:
        """The captions of a picture; "" if it has none."""
        return self.texts[index] if self.texts is not None else ("",)

    def label_of(self, index: int) -> int:
        """The class id of a picture; -1 for none."""
        return -1 if self.labels is None else self.labels[index]

    def version(self, index: int, turn: int) -> Image.Image:
        """A picture as it is shown for the ``turn``-th time, if each pass shows all. Raises UnreadablePictureError."""
        return self.cropped((turn * len(self) + index, index) if turn else index)[0]

    def cropped(self, key: int | tuple[int, int]) -> tuple[Image.Image, int, int]:
        """The picture of a key at its size, with the index shown and the index requested."""
        drawn = isinstance(key, tuple)
        if isinstance(key, tuple):
            position, requested = int(key[0]), self._checked(key[1])
        else:
            position = requested = self._checked(key)
        if drawn and self.unreadable == "skip":
            index, image = self._readable(position, requested)
        else:
            index, image = requested, self.store.prepared(requested)
        turn = position // len(self) if drawn else 0
        return self._fitted(image, index, position, turn, self._mirrors(index)), index, requested

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

    def under(self, config: DataConfig) -> ImageSplits:
        """The same pictures, held out in the same way, at the size and under the fit, crop and flip of a config."""
        return replace(
            self,
            train=ImageDataset(self.train.table, self.class_names, config),
            validation=ImageDataset(self.validation.table, self.class_names, config.of_held_out()),
        )


def load_images(config: DataConfig) -> ImageSplits:
    """Read the pictures that ``config`` describes and hold some out for validation.

    The held-out pictures are the split ``config.validation_split``, or the split ``validation`` if the data has one, or
    else ``config.validation_fraction`` of the training split: that share of every class, the same for every choice of
    ``config.classes``, with near twins on one side.

    Raises:
        ConfigError: a number out of range, or a stream, which :func:`wvq.data.opening.open_images` opens.
        DataError: what is not there (folder, split, column, class) or cannot be read: of the pictures, a few from all
            over each split are tried.
        DownloadError: a Hub id that cannot be reached.
    """
    config.check()
    if config.stream:
        raise ConfigError("data.stream: here all pictures are needed by number; leave it out")
    inventory = Inventory()
    splits = read_source(config, inventory)
    train, class_names = to_table(named_split(splits, config.train_split, "data.train_split"), config)
    validation_split = config.validation_split or ("validation" if "validation" in splits else None)
    if validation_split is None:
        held_out = hold_out(train, class_names, config.validation_fraction, config.seed)
        train, validation = train.select(np.flatnonzero(~held_out)), train.select(np.flatnonzero(held_out))
        held_out_as = f"{100 * config.validation_fraction:.3g}% of {'each class' if class_names else 'all'}"
    else:
        raw_validation = named_split(splits, validation_split, "data.validation_split")
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
    images = ImageSplits(
        train=ImageDataset(train, class_names, config),
        validation=ImageDataset(validation, class_names, config.of_held_out()),
        class_names=class_names,
        source=config.source,
        inventory=inventory,
    )
    for dataset in (images.train, images.validation):
        probe(dataset)
    return images
