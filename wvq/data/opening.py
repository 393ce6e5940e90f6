"""`open_images` reads the pictures of a data set, from a table or as a stream, and holds some out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

import datasets
import numpy as np
from tqdm import tqdm

from wvq.data.dataset import ImageSplits, load_images
from wvq.data.inventory import Inventory
from wvq.data.shard_rows import identity_of, number_classes, row_features
from wvq.data.shards import URL, find_shards
from wvq.data.stream import Classes, PictureStream, StreamedImages, StreamedPicture
from wvq.data.tables import find_columns, named_split, options
from wvq.data.unreadable import PROBED, Reading
from wvq.distributed import decided_by_first_process
from wvq.errors import DataError
from wvq.files.atomic import read_json, write_json
from wvq.files.user_folders import cache_folder
from wvq.settings.data import DataConfig


@dataclass
class StreamSplits:
    """What :func:`open_images` returns of a stream; the fields are those of :class:`wvq.data.dataset.ImageSplits`."""

    train: StreamedImages
    validation: StreamedImages
    class_names: tuple[str, ...]
    source: str
    inventory: Inventory


def open_images(config: DataConfig) -> ImageSplits | StreamSplits:
    """Read the pictures that ``config`` describes, as a stream if it says so, and hold some out for validation.

    The held-out pictures of a stream are the shards of the split ``config.validation_split`` or ``validation``, or
    else the share ``config.validation_fraction`` of the training shards, at least one and never all: the last ones in
    an order that the data seed fixes.

    Raises:
        ConfigError, DataError, DownloadError: as of :func:`wvq.data.dataset.load_images`; also a single shard, of which
            nothing can be held out.
    """
    if not config.stream:
        return load_images(config)
    config.check()
    inventory = Inventory()
    shards = find_shards(config, inventory)
    assert shards is not None  # a stream without shards is an error of find_shards
    splits = shards.splits
    train = named_split(splits, config.train_split, "data.train_split")
    validation_split = config.validation_split or ("validation" if "validation" in splits else None)
    if validation_split is None:
        train, held_out = hold_out_shards(train, config)
        inventory.held_out_as = f"{100 * config.validation_fraction:.3g}% of the shards"
    else:
        held_out = named_split(splits, validation_split, "data.validation_split")
        inventory.held_out_as = f"the split {validation_split}"
    features = row_features(shards.kind, train[0], config)
    columns = find_columns(features, config)
    label = features[columns[1]] if columns[1] is not None else None
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else None
    stream = PictureStream(shards.kind, train, config, columns, names)
    head = list(islice(StreamedImages(stream, config).share(), PROBED))
    num_captioned = sum(any(text.strip() for text in picture.texts) for picture in head)
    has_captions = num_captioned > 0
    stream = replace(stream, classes=_classes(stream, config))
    images = StreamSplits(
        train=StreamedImages(stream, config, has_captions),
        validation=StreamedImages(replace(stream, urls=held_out), config.of_held_out(), has_captions),
        class_names=stream.classes.names if stream.classes else (),
        source=config.source,
        inventory=inventory,
    )
    for part, dataset in (("training", images.train), ("validation", images.validation)):
        _probe(dataset, part, config)
    inventory.unit = f"{shards.kind} shards"
    inventory.num_images = {"training": len(train), "held out": len(held_out)}
    inventory.class_names = images.class_names
    inventory.num_captioned, inventory.num_examined = num_captioned or None, len(head)
    inventory.remark("read as a stream, whose pictures are not compared with those of other stages")
    return images


def hold_out_shards(shards: tuple[str, ...], config: DataConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out shards, each in their order.

    Raises:
        DataError: there is a single shard.
    """
    if len(shards) < 2:
        raise DataError(
            f"data.validation_fraction: {config.path} has a single training shard, and of a stream whole shards are "
            "held out; leave data.stream out, or add a shard that is named validation"
        )
    count = min(math.ceil(config.validation_fraction * len(shards)), len(shards) - 1)
    last = set(np.random.default_rng(config.seed).permutation(len(shards))[-count:].tolist())
    train = tuple(shard for number, shard in enumerate(shards) if number not in last)
    return train, tuple(shard for number, shard in enumerate(shards) if number in last)


def _classes(stream: PictureStream, config: DataConfig) -> Classes | None:
    """The classes of a stream: those of a ClassLabel, those of ``config.classes``, or all that its labels name.

    Raises:
        DataError: shards elsewhere whose labels would all have to be fetched; or there are no classes to choose from.
    """
    if stream.label_names is not None:
        names = tuple(config.classes or stream.label_names)
        if unknown := [name for name in names if name not in stream.label_names]:
            raise DataError(
                f"data.classes: the data has no class {unknown[0]!r}{options(unknown[0], stream.label_names)}"
            )
        return Classes(names, _ids(names), chosen=config.classes is not None)
    labels = list(islice(stream.labels(0), PROBED)) if stream.columns[1] is not None else []
    known = [label for label in labels if label is not None]
    if not known:
        if config.classes is not None:
            raise DataError(
                "data.classes: the data has no class column to choose from; set data.label_column or leave them out"
            )
        return None
    if config.classes is not None:
        numbered = all(map(str.isdecimal, known)) and not any(map(str.isdecimal, config.classes))
        ids = _ids(map(str, range(len(config.classes))) if numbered else config.classes)
        return Classes(tuple(config.classes), ids, chosen=True, numbered=numbered)
    if URL.match(stream.urls[0]) and stream.kind == "tar":
        raise DataError(
            "data.classes: to find the names of the classes every shard would have to be fetched; list them there "
            "(of class 0, 1, and so on, where the classes are numbers)"
        )
    names_found, ids = number_classes(decided_by_first_process(lambda: _all_labels(stream)), None)
    return Classes(tuple(names_found), ids)


def _ids(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _all_labels(stream: PictureStream) -> list[str]:
    """What the rows call their classes, by one pass over the labels; kept for the next time, if the cache allows it."""
    key = hashlib.sha256(json.dumps([identity_of(stream.urls), stream.columns]).encode()).hexdigest()[:32]
    file = None
    with contextlib.suppress(OSError):
        file = cache_folder() / "classes" / f"{key}.json"
        if file.is_file():
            return read_json(file, DataError, f"{file} is being removed")["labels"]
    values: set[str] = set()
    for shard in tqdm(range(len(stream.urls)), desc="classes", unit="shard", disable=None, leave=False):
        values.update(label for label in stream.labels(shard) if label is not None)
    if file is not None:
        with contextlib.suppress(OSError):
            write_json(file, {"labels": sorted(values)})
    return sorted(values)


def _probe(dataset: StreamedImages, part: str, config: DataConfig) -> None:
    """Read the first pictures, so that a set of other files is refused before work begins.

    Raises:
        DataError: there are none, or none or too few of them can be read.
    """
    first: list[StreamedPicture] = list(islice(dataset.share(), PROBED))
    if not first:
        raise DataError(f"data.path: {config.path} leaves no {part} pictures; check the splits, classes and shards")
    reading = Reading(dataset, first)
    for _ in reading:
        pass
    reading.refuse_too_many()
