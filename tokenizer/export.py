"""Exports codes: encodes every picture (in several crops, if requested) into a cache for the generator.

    wvq export-codes --tokenizer runs/tokenizer --out runs/codes --data.path openmoji --num_crops 8

Loader processes read each picture once for all its crops. The rows go to disk as they come, and a command that was
stopped goes on from the complete files; under `accelerate launch` the processes share these. Pictures that cannot
be read have no rows. After writing, random rows are decoded and compared with their pictures, and the PSNR is printed
and kept in the header.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

import wvq
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.data.dataset import ImageDataset, ImageSplits
from wvq.data.fingerprint import fingerprint_of
from wvq.data.layout import flatten_codes
from wvq.data.loading import Attempted, chunked, read_chunks, regrouped
from wvq.data.opening import StreamSplits, open_images
from wvq.data.pixels import from_uint8, to_pixels, to_uint8
from wvq.data.splits import check_pictures
from wvq.data.stream import Pictures, StreamedImages
from wvq.data.unreadable import join_left_out, refuse_too_many, summary
from wvq.distributed import decided_by_first_process, gather_objects, is_main_process, processes
from wvq.errors import CacheError, DataError
from wvq.files.fingerprint import DataFingerprint
from wvq.files.locks import sole_run
from wvq.files.stage_folder import refuse_data_folder, refuse_occupied
from wvq.interruption import StopRequest, stop_on_signal
from wvq.tokenizer.export_work import ExportWork, picture_ranges
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.picture_metrics import psnr
from wvq.tokenizer.recipes import ExportRecipe

CHECKED_ROWS = 32


def export_codes(recipe: ExportRecipe, images: ImageSplits | StreamSplits | None = None) -> CodeHeader:
    """Encode the pictures of a recipe into ``recipe.out``; the folder appears when it is complete and checked.

    Args:
        recipe: settings.
        images: the pictures of ``recipe.data``, if they have been read and their inventory shown before.

    Raises:
        ConfigError, DataError, CheckpointError: bad settings, pictures (one, or too many, that cannot be read) or
            tokenizer.
        CacheError: the self-check found rows that do not decode to their pictures.
        RunInterrupted: SIGTERM or Ctrl-C came; the same call goes on from the complete files.
    """
    recipe.check()
    state = processes()
    refuse_data_folder(recipe.out, recipe.data.path)
    decided_by_first_process(lambda: refuse_occupied(recipe.out, "files"))
    tokenizer = WassersteinVQModel.from_pretrained(recipe.tokenizer).to(state.device)
    tokenizer.config.require_image_size(recipe.data, recipe.tokenizer)
    if is_main_process() and (warning := tokenizer.config.other_fit(recipe.data, recipe.tokenizer)):
        warnings.warn(warning, stacklevel=2)
    if images is None:
        images = open_images(recipe.data)
        images.inventory.show()
    fingerprint = decided_by_first_process(lambda: _fingerprint(recipe, images, tokenizer))
    sets: dict[str, Pictures] = {"train": images.train, "validation": images.validation}
    header = CodeHeader(
        tokenizer_hash=tokenizer.codes_hash(),
        num_codes=tokenizer.config.num_codes,
        grid=list(tokenizer.config.grid),
        layout=tokenizer.config.code_layout,
        image_size=tokenizer.config.image_size,
        crop_recipe={
            "train": _crop_recipe(images.train, recipe.num_crops),
            "validation": images.validation.crop_recipe,
        },
        num_crops=recipe.num_crops,
        class_names=list(images.class_names),
        source=images.source,
        # Less the unreadable ones, once they are known; nobody has counted a stream yet.
        num_images={split: len(dataset) for split, dataset in sets.items() if isinstance(dataset, ImageDataset)},
        has_captions=images.train.has_captions,
        library_version=wvq.__version__,
    )
    with sole_run(recipe.out):
        files = {split: _num_files(dataset) for split, dataset in sets.items()}
        work = ExportWork(recipe.out, header, _identity(recipe, header, sets), files)
        decided_by_first_process(work.claim)
        # Stopping at any moment loses nothing: a file is complete, or is written again.
        with stop_on_signal(at_once=work.progress) as request:
            try:
                left_out = _encode(work, sets, tokenizer, recipe, request)
            except BaseException:
                if state.num_processes == 1 and not any(work.done().values()):
                    work.remove()  # it would block a command with other settings
                raise
            return _finish(work, sets, left_out, tokenizer, header, fingerprint)


def _fingerprint(
    recipe: ExportRecipe, images: ImageSplits | StreamSplits, tokenizer: WassersteinVQModel
) -> DataFingerprint | None:
    """The fingerprint of the cache; None for a stream.

    Raises:
        ConfigError: the tokenizer was trained on pictures that are held out.
    """
    fingerprint = fingerprint_of(images, recipe.data.path)
    for line in check_pictures(tokenizer.data_fingerprint, fingerprint, recipe.tokenizer, recipe.data):
        warnings.warn(line, stacklevel=2)
    return fingerprint


def _num_files(dataset: Pictures) -> int:
    """The files of codes of a split: of a stream one for each shard."""
    return dataset.num_shards if isinstance(dataset, StreamedImages) else len(picture_ranges(len(dataset)))


def _pictures_of_file(dataset: Pictures, number: int) -> Iterable[Any]:
    """Keys of the pictures whose codes are in one file."""
    if isinstance(dataset, StreamedImages):
        return dataset.stream.read(number)
    return picture_ranges(len(dataset))[number]


# What the rows do not depend on: it may change before an export that was stopped goes on.
_FREE = ("unreadable", "ignore_mixed_split", "stream", "shuffle_buffer")


def _identity(recipe: ExportRecipe, header: CodeHeader, sets: dict[str, Pictures]) -> dict:
    """All that the rows depend on: batch size, loaders and rules for what is refused may change in between."""
    names = ("tokenizer_hash", "layout", "crop_recipe", "num_crops", "num_images", "class_names", "library_version")
    identity = {name: getattr(header, name) for name in names}
    identity["data"] = {name: value for name, value in asdict(recipe.data).items() if name not in _FREE}
    return identity | {"pictures": {split: dataset.identity() for split, dataset in sets.items()}}


def _crop_recipe(dataset: Pictures, num_crops: int) -> str:
    if num_crops == 1:
        return dataset.with_crop(crop="center", flip=False).crop_recipe
    return dataset.crop_recipe if dataset.crop == "ten" else f"center, then {dataset.crop_recipe}"


def _count(work: ExportWork, left_out: dict[str, dict], header: CodeHeader) -> None:
    """Enter the counts into the header. Raises DataError if too many pictures could not be read."""
    for split in work.files:
        failures, used = left_out[split].values(), sum(work.rows(split)) // _crops_of(split, header)
        refuse_too_many(failures, used + len(failures))
        if failures:
            text = f"{summary(failures, used + len(failures))} and have no rows in the {split} codes"
            warnings.warn(text, stacklevel=2)
        header.num_images[split] = used
        header.unreadable_pictures[split] = len(failures)


def _crops_of(split: str, header: CodeHeader) -> int:
    return header.num_crops if split == "train" else 1


def _finish(
    work: ExportWork,
    sets: dict[str, Pictures],
    left_out: dict[str, dict],
    tokenizer: WassersteinVQModel,
    header: CodeHeader,
    fingerprint: DataFingerprint | None,
) -> CodeHeader:
    """Make the cache of the files, check it and give it its name; the main process does, the others wait.

    Returns:
        The header, with counts and figures.
    """

    def finish() -> CodeHeader:
        try:
            _count(work, left_out, header)
            folder = work.join()
            header.save(folder)
            if fingerprint is not None:
                fingerprint.save(folder)
            for split, dataset in sets.items():
                header.psnr_rgb[split] = _self_check(work, split, dataset, left_out[split], tokenizer)
            header.save(folder)
            work.publish()
        except (CacheError, DataError):  # the files are of no use
            work.remove()
            raise
        return header

    return decided_by_first_process(finish)


def _views(dataset: Pictures, split: str, num_crops: int) -> list[Pictures]:
    """The centre crop, and for training pictures the data set's own crop after it."""
    centre = dataset.with_crop(crop="center", flip=False)
    if split == "validation" or num_crops == 1:
        return [centre]
    return [dataset if dataset.crop == "ten" else centre, dataset]  # the first of the ten is a centre crop


class Versions(Dataset):
    """Pictures in all their crops; an item is a dict of ``pixel_values`` uint8 (crops, 3, H, W), ``label``, ``index``.

    Args:
        dataset: the pictures of a split.
        split: ``train`` or ``validation``, whose pictures have one crop.
        num_crops: crops of each training picture.
    """

    def __init__(self, dataset: Pictures, split: str, num_crops: int):
        self.views = _views(dataset, split, num_crops)
        self.num_crops = num_crops if len(self.views) > 1 else 1
        self.unreadable, self.store = dataset.unreadable, dataset.store

    def __getitem__(self, key: Any) -> dict:
        # The first crop shows whether the picture is readable.
        crops = np.stack([np.asarray(self.crop(key, crop)) for crop in range(self.num_crops)])
        pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()
        return {"pixel_values": pixels, "label": self.views[0].label_of(key), "index": int(key)}

    def crop(self, key: Any, crop: int) -> Image.Image:
        """One crop of a picture. Raises UnreadablePictureError."""
        return self.views[min(crop, 1)].version(key, crop)


def _encode(
    work: ExportWork,
    sets: dict[str, Pictures],
    tokenizer: WassersteinVQModel,
    recipe: ExportRecipe,
    request: StopRequest,
) -> dict[str, dict[int, str]]:
    """Write the files that are missing, each process its share; returns the pictures that all of them left out."""
    state = processes()
    # The main process alone looks: the files change while the others start.
    done = gather_objects(work.done() if is_main_process() else None)[0]
    left_out = {}
    for split, dataset in sets.items():
        missing = [number for number in range(work.files[split]) if number not in done[split]]
        mine = missing[state.process_index :: state.num_processes]
        newly = _encode_files(work, split, mine, dataset, tokenizer, recipe, request)
        if isinstance(dataset, StreamedImages):
            dataset.stream.warn_of_missing()
        left_out[split] = join_left_out([*done[split].values(), newly])
    parts = gather_objects(left_out)
    return {split: join_left_out(part[split] for part in parts) for split in sets}


def _encode_files(
    work: ExportWork,
    split: str,
    numbers: list[int],
    dataset: Pictures,
    tokenizer: WassersteinVQModel,
    recipe: ExportRecipe,
    request: StopRequest,
) -> dict[int, str]:
    """Write some files of a split; returns the pictures left out of them."""
    versions = Versions(dataset, split, recipe.num_crops)
    size = max(1, recipe.batch_size // versions.num_crops)  # pictures that a loader process reads at a time
    reading: deque[int] = deque()  # the file of each chunk that is being read
    texts: dict[int, dict[int, tuple[str, ...]]] = {number: {} for number in numbers}  # captions by file and picture
    all_left_out: dict[int, str] = {}

    def chunks() -> Iterator[list[Any]]:
        for number in numbers:
            for chunk in chain(chunked(_pictures_of_file(dataset, number), size), [[]]):  # an empty file has a chunk
                reading.append(number)
                texts[number] |= {int(key): dataset.texts_of(key) for key in chunk}
                yield chunk

    with (
        tqdm(
            total=_num_rows(dataset, numbers, versions.num_crops),
            unit="row",
            desc=f"codes, {split}",
            disable=not is_main_process(),
        ) as bar,
        contextlib.closing(read_chunks(versions, chunks(), tokenizer.device, recipe.num_workers)) as read,
    ):

        def watched(batches: Iterable[dict]) -> Iterator[dict]:
            for batch in batches:
                request.raise_if_set(work.progress)
                yield batch
                bar.update(len(batch["label"]))

        for number, parts in groupby(read, lambda _: reading.popleft()):
            left_out: dict[int, str] = {}
            batches = _encoded(regrouped(_crops(parts, left_out), recipe.batch_size), texts[number], tokenizer)
            work.write(split, number, watched(batches), left_out)
            del texts[number]
            all_left_out |= left_out
    return all_left_out


def _num_rows(dataset: Pictures, numbers: list[int], num_crops: int) -> int | None:
    """The rows of some files; None where nobody has counted them."""
    if isinstance(dataset, StreamedImages):
        return None
    ranges = picture_ranges(len(dataset))
    return num_crops * sum(len(ranges[number]) for number in numbers)


def _crops(chunks: Iterable[tuple[dict, Attempted]], left_out: dict[int, str]) -> Iterator[dict[str, torch.Tensor]]:
    """The crops of the pictures as rows, picture by picture; fills ``left_out`` with those that cannot be read."""
    for batch, attempted in chunks:
        left_out |= {number: failure for number, failure in attempted if failure is not None}
        if batch:
            rows = {name: batch[name].repeat_interleave(batch["pixel_values"].shape[1]) for name in ("label", "index")}
            yield {"pixel_values": batch["pixel_values"].flatten(0, 1), **rows}


@torch.no_grad()
def _codes(batch: dict[str, torch.Tensor], texts: dict[int, tuple[str, ...]], tokenizer: WassersteinVQModel) -> dict:
    codes = flatten_codes(tokenizer.encode(from_uint8(batch["pixel_values"])).codes, tokenizer.config.code_layout)
    captions = [texts[index] for index in batch["index"].tolist()]
    return {"codes": codes, "label": batch["label"].tolist(), "caption": captions}


def _encoded(
    batches: Iterable[dict[str, torch.Tensor]], texts: dict[int, tuple[str, ...]], tokenizer: WassersteinVQModel
) -> Iterator[dict]:
    """Rows of codes, each batch given when the next one has begun: a GPU works on that while this one is fetched."""
    previous = None
    for batch in batches:
        begun = _codes(batch, texts, tokenizer)
        if previous is not None:
            yield previous
        previous = begun
    if previous is not None:
        yield previous


@torch.no_grad()
def _self_check(
    work: ExportWork, split: str, dataset: Pictures, left_out: dict[int, str], tokenizer: WassersteinVQModel
) -> float:
    """Decode random rows and compare them with their pictures encoded again; return their PSNR in dB.

    Those of a stream are all of one shard: the others need not be read again.
    """
    folder = work.cache
    cache = CodeDataset(folder, split)
    generator = torch.Generator().manual_seed(0)
    if isinstance(dataset, StreamedImages):
        counts = [rows // cache.num_crops for rows in work.rows(split)]
        shards = [shard for shard, count in enumerate(counts) if count]
        shard = shards[int(torch.randint(len(shards), (), generator=generator))]
        places = set(torch.randperm(counts[shard], generator=generator)[:CHECKED_ROWS].tolist())
        readable = (picture for picture in dataset.stream.read(shard) if int(picture) not in left_out)
        keys: list[Any] = [picture for place, picture in enumerate(readable) if place in places]
        indices = [sum(counts[:shard]) + place for place in sorted(places)]
    else:
        indices = torch.randperm(len(cache), generator=generator)[:CHECKED_ROWS].tolist()
        used = [index for index in range(len(dataset)) if index not in left_out]
        keys = [used[index] for index in indices]
    crops = torch.randint(cache.num_crops, (len(indices),), generator=generator).tolist()
    versions = Versions(dataset, split, cache.num_crops)
    picked = [versions.crop(key, crop) for key, crop in zip(keys, crops, strict=True)]
    pixels = torch.stack([to_pixels(image) for image in picked]).to(tokenizer.device)
    rows = [index * cache.num_crops + crop for index, crop in zip(indices, crops, strict=True)]
    decoded = tokenizer.decode_codes(cache.codes(rows).to(tokenizer.device))
    direct = tokenizer.decode(tokenizer.encode(pixels).quantized)
    value = psnr(to_uint8(decoded), to_uint8(pixels)).mean().item()
    expected = psnr(to_uint8(direct), to_uint8(pixels)).mean().item()
    if abs(value - expected) > 0.1:
        raise CacheError(
            f"{folder}/{split}: rows decode to {value:.2f} dB where their pictures give {expected:.2f} dB; "
            "the rows are out of order or damaged"
        )
    return round(value, 3)
