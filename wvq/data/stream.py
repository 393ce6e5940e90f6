"""Pictures that are read in order from shards while they are needed: nothing is copied, and little is held."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, SupportsInt

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import default_collate

from wvq.data.crops import CroppedPictures, largest_box
from wvq.data.dataset import ImageDataset
from wvq.data.pictures import EncodedStore
from wvq.data.pixels import to_pixels
from wvq.data.shard_rows import identity_of, read_rows
from wvq.data.tables import PictureTable
from wvq.distributed import is_main_process
from wvq.errors import DataError, UnreadablePictureError
from wvq.settings.data import DataConfig

_ROW_BITS = 32  # of a picture's number; the rest is that of its shard
_POSITIONS = 2**64  # more than there are numbers: each version of an export has positions of its own


@dataclass(frozen=True, eq=False)
class StreamedPicture:
    """A picture of a stream, not yet decoded; ``int`` gives its number, which ascends in the order of the stream.

    Args:
        number: that of its shard times ``2**32``, plus that of its row there.
        name: what messages call it.
        encoded: bytes and path of its file.
        label: class id; -1 for none.
        texts: its captions; "" if it has none.
    """

    number: int
    name: str
    encoded: dict[str, Any]
    label: int
    texts: tuple[str, ...]

    def __int__(self) -> int:
        return self.number

    @property
    def row(self) -> int:
        """Its row in its shard."""
        return self.number & (2**_ROW_BITS - 1)


@dataclass(frozen=True)
class Classes:
    """Class ids by what rows call a class.

    Args:
        names: by id.
        ids: by what rows say.
        chosen: whether other classes, and pictures without one, are left out.
        numbered: whether rows hold ids, so that another number is an error and no other class.
    """

    names: tuple[str, ...]
    ids: Mapping[str, int]
    chosen: bool = False
    numbered: bool = False

    def id_of(self, value: str | None) -> int | None:
        """The id of what a row says: -1 for no class, None for a picture that is left out.

        Raises:
            DataError: a class that is not known.
        """
        if value is None:
            return None if self.chosen else -1
        number = self.ids.get(value)
        if number is None and not (self.chosen and not self.numbered):
            known = f"0 to {len(self.names) - 1} have names" if self.numbered else "the training shards do not have it"
            raise DataError(
                f"data.classes: a picture is of class {value!r}, and {known}; name all of them in data.classes"
            )
        return number


@dataclass
class PictureStream:
    """The pictures of some shards, in order; a picklable description, opened anew for each pass.

    Rows without a picture, as tables of downloads keep one for each that failed, are passed over and counted, for one
    warning at the end of a pass; pictures of classes that are not chosen are passed over in silence.

    Args:
        kind: ``tar`` or ``parquet``.
        urls: the shards.
        config: names the parts of a sample that are read.
        columns: of pictures, classes and captions in the rows.
        label_names: of a ClassLabel column: its classes, by the numbers in the rows.
        classes: ids of the classes; None to give every picture -1.
    """

    kind: str
    urls: tuple[str, ...]
    config: DataConfig
    columns: tuple[str, str | None, str | None]
    label_names: tuple[str, ...] | None = None
    classes: Classes | None = None
    _missing: dict[int, int] = field(default_factory=dict, init=False, repr=False)  # by shard, of those read wholly
    _first_missing: str = field(default="", init=False, repr=False)
    _warned: bool = field(default=False, init=False, repr=False)

    def labels(self, shard: int) -> Iterator[str | None]:
        """What the rows of a shard call their classes; of parquet no other column is read."""
        _, label, _ = self.columns
        for values in read_rows(self.kind, self.urls[shard], self.config, columns=[label] if label else []):
            yield self._class_of(values)

    def read(self, shard: int, start: int = 0) -> Iterator[StreamedPicture]:
        """The pictures of a shard, from row ``start`` on.

        Raises:
            DataError, DownloadError: the shard is damaged, or cannot be reached; or a class is not known.
        """
        url, (image, _, caption) = self.urls[shard], self.columns
        rows = read_rows(self.kind, url, self.config, start, [name for name in self.columns if name is not None])
        missing = 0
        for row, values in enumerate(rows, start):
            encoded = values[image]
            if isinstance(encoded, bytes):
                encoded = {"bytes": encoded, "path": None}
            file = f"{url.rsplit('/', 1)[-1]}/{(encoded or {}).get('path') or f'row {row}'}"
            if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
                missing += 1
                self._first_missing = self._first_missing or file
                continue
            label = -1 if self.classes is None else self.classes.id_of(self._class_of(values))
            if label is not None:
                texts = _texts(values[caption]) if caption is not None else ("",)
                yield StreamedPicture(shard << _ROW_BITS | row, file, encoded, label, texts)
        if start == 0:
            self._missing[shard] = missing

    def warn_of_missing(self) -> None:
        """Warn of the rows without a picture, once and in the main process; to be called at the end of a pass."""
        count, shards = sum(self._missing.values()), len(self._missing)
        if count and not self._warned and is_main_process():
            self._warned = True
            warnings.warn(
                f"rows without a picture are left out: {count:,} of the shards that were read ({shards:,}); the first: "
                f"{self._first_missing}",
                stacklevel=2,
            )

    def _class_of(self, values: dict[str, Any]) -> str | None:
        value = values[label] if (label := self.columns[1]) is not None else None
        if value is None or self.label_names is None:
            return None if value is None else str(value)
        return self.label_names[value] if value >= 0 else None  # -1: "unlabelled" in the test splits of many data sets

    def identity(self) -> str:
        """SHA-256 over what the pictures and their order depend on; their content is not read."""
        described = [identity_of(self.urls), self.columns, self.classes and [self.classes.names, self.classes.chosen]]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _texts(value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    return tuple(text for text in texts if isinstance(text, str)) or ("",)


@dataclass
class DrawnBatch:
    """What a training run draws: pictures with their position in the run and the epoch, and some for lack of those."""

    drawn: list[tuple[int, int, StreamedPicture]]
    spares: list[StreamedPicture]


class StreamedImages(CroppedPictures):
    """Pictures of one size, cropped or padded, of a stream of pictures.

    A key is a picture itself, as :meth:`share` and :meth:`at` give them, so that a loader process has what it decodes.
    Items are those of :class:`wvq.data.dataset.ImageDataset`; the number of a picture is its index.

    A training run takes whole batches by ``__getitems__``: a :class:`DrawnBatch`, whose crops depend on the data seed
    and the position. There, with ``unreadable`` set to ``skip``, another picture of the batch or of its spares takes
    the place of one that cannot be read, and ``failures`` says why it had to.

    Args:
        stream: the pictures.
        settings: as of :class:`wvq.data.crops.CroppedPictures`.
        has_captions: whether the pictures have captions.
    """

    def __init__(self, stream: PictureStream, settings: DataConfig, has_captions: bool = False):
        super().__init__(stream.classes.names if stream.classes else (), settings)
        self.stream, self.has_captions = stream, has_captions
        self.store = EncodedStore(*largest_box(settings))

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self.stream.urls)

    def share(self, rank: int = 0, world: int = 1) -> Iterator[StreamedPicture]:
        """The pictures of one of ``world`` processes, in order: those of every ``world``-th shard."""
        for shard in range(rank, self.num_shards, world):
            yield from self.stream.read(shard)
        self.stream.warn_of_missing()

    def at(self, chunks: Iterable[Sequence[int]]) -> Iterator[list[SupportsInt]]:
        """The pictures of some numbers, which ascend within a chunk and from each to the next.

        Raises:
            DataError: a picture is not there any more.
        """
        shard, pictures = -1, self.stream.read(0)
        for chunk in chunks:
            found: list[SupportsInt] = []
            for number in chunk:
                if number >> _ROW_BITS != shard:
                    shard = number >> _ROW_BITS
                    pictures = self.stream.read(shard, number & (2**_ROW_BITS - 1))
                picture = next((picture for picture in pictures if int(picture) >= number), None)
                if picture is None or int(picture) != number:
                    raise DataError(f"{self.stream.urls[shard]} is not what it was; start again")
                found.append(picture)
            yield found

    def first(self, count: int) -> ImageDataset:
        """The first ``count`` pictures, held in memory, for what needs pictures by number."""
        pictures = list(islice(self.share(), count))
        features = datasets.Features({"image": datasets.Image(decode=False)})
        table = PictureTable(
            datasets.Dataset.from_dict({"image": [picture.encoded for picture in pictures]}, features=features),
            labels=[picture.label for picture in pictures] if self.class_names else None,
            texts=[picture.texts for picture in pictures] if self.has_captions else None,
        )
        return ImageDataset(table, self.class_names, self.settings)

    def __getitem__(self, key: StreamedPicture) -> dict[str, Any]:
        return _item(self.version(key, 0), key, key)

    def identity(self) -> str:
        """SHA-256 over what the pictures and their order depend on; their content is not read."""
        return self.stream.identity()

    def texts_of(self, picture: StreamedPicture) -> tuple[str, ...]:
        """The captions of a picture; "" if it has none."""
        return picture.texts

    def label_of(self, picture: StreamedPicture) -> int:
        """The class id of a picture; -1 for none."""
        return picture.label

    def version(self, picture: StreamedPicture, turn: int, position: int | None = None) -> Image.Image:
        """A picture as it is shown for the ``turn``-th time. Raises UnreadablePictureError.

        Args:
            picture: of this stream.
            turn: which of the crops of ``ten``.
            position: with the seed it decides on random crop and flip; one for each turn of each picture if None.
        """
        position = turn * _POSITIONS + int(picture) if position is None else position
        return self._fitted(self.store.prepared(picture), int(picture), position, turn, mirrors=True)

    def __getitems__(self, batch: DrawnBatch) -> dict[str, Any]:
        shown, failures = [], []
        for position, epoch, picture in batch.drawn:
            try:
                shown.append(_item(self.version(picture, epoch, position), picture, picture))
                failures.append("")
            except UnreadablePictureError:
                if self.unreadable == "refuse":
                    raise
                shown.append(self._replacement(batch, position, epoch, picture))
                failures.append(self.store.failure(picture))
        return {**default_collate(shown), "failures": failures}

    def _replacement(self, batch: DrawnBatch, position: int, epoch: int, requested: StreamedPicture) -> dict[str, Any]:
        others = [*(picture for _, _, picture in batch.drawn), *batch.spares]
        for number in np.random.default_rng((self.settings.seed, position, int(requested))).permutation(len(others)):
            try:
                return _item(self.version(others[number], epoch, position), others[number], requested)
            except UnreadablePictureError as error:
                last = error
        raise DataError(f"{len(others)} pictures drawn at random cannot be read; the last: {last}")

    @staticmethod
    def collate_fn(batch: dict[str, Any]) -> dict[str, Any]:
        """Batches come whole."""
        return batch


Pictures = ImageDataset | StreamedImages


def numbered_pictures(pictures: Pictures, count: int) -> ImageDataset:
    """The pictures by number: of a stream the first ``count``, held in memory."""
    return pictures.first(count) if isinstance(pictures, StreamedImages) else pictures


def _item(image: Image.Image, picture: StreamedPicture, requested: StreamedPicture) -> dict[str, Any]:
    pixels = to_pixels(image)
    return {"pixel_values": pixels, "label": picture.label, "index": int(picture), "requested": int(requested)}
