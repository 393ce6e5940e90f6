"""Exports codes: encodes every picture (in several crops, if asked) into a cache for the generator.

    wvq export-codes --tokenizer runs/tokenizer --out runs/codes --data.path openmoji --num_crops 8

Under `accelerate launch` each process encodes its share; the first one joins them. Pictures that cannot be read have no
rows. After writing, random rows are decoded and held against their pictures, and the PSNR is printed and kept in the
header.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from tqdm import tqdm

import wvq
from wvq.codes import SPLITS, CodeDataset, CodeHeader, batched, write_rows
from wvq.data import ImageDataset, load_images
from wvq.distributed import gather_objects, processes
from wvq.errors import CacheError, DataError
from wvq.images import to_uint8
from wvq.layout import flatten_codes
from wvq.locks import sole_writer
from wvq.outputs import refuse_data_folder, refuse_occupied, remove_files, whole_folder
from wvq.recipes import ExportRecipe
from wvq.splits import other_split
from wvq.tokenizer.metrics import psnr
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.unreadable import Reading, join_left_out, refuse_too_many, summary

CHECKED_ROWS = 32
_SHARE = re.compile(rf"({'|'.join(SPLITS)})-\d+")  # a process's rows of a split


def export_codes(recipe: ExportRecipe) -> CodeHeader:
    """Encode the pictures of a recipe into ``recipe.out``; the folder appears when it is complete and checked.

    Raises:
        ConfigError, DataError, CheckpointError: bad settings, pictures (one, or too many, that cannot be read) or
            tokenizer.
        CacheError: the self-check found rows that do not decode to their pictures.
    """
    recipe.check()
    state = processes()
    refuse_data_folder(recipe.out, recipe.data.path)
    refuse_occupied(recipe.out, "files")
    tokenizer = WassersteinVQModel.from_pretrained(recipe.tokenizer).to(state.device)
    tokenizer.config.require_image_size(recipe.data.image_size, recipe.tokenizer)
    if state.is_main_process and (warning := other_split(recipe.tokenizer, recipe.data)):
        warnings.warn(warning, stacklevel=2)
    images = load_images(recipe.data)
    sets = {"train": images.train, "validation": images.validation}
    header = CodeHeader(
        tokenizer_hash=tokenizer.codes_hash(),
        num_codes=tokenizer.config.num_codes,
        grid=list(tokenizer.config.grid),
        layout=tokenizer.config.code_layout,
        image_size=tokenizer.config.image_size,
        crop_recipe={
            "train": _crop_recipe(images.train, recipe.num_crops),
            "validation": "center",
        },
        num_crops=recipe.num_crops,
        class_names=list(images.class_names),
        source=images.source,
        num_images={split: len(dataset) for split, dataset in sets.items()},  # less the unreadable ones, once known
        has_captions=images.train.captions is not None,
        library_version=wvq.__version__,
    )
    with sole_writer(recipe.out, state.is_main_process):
        if state.num_processes == 1:
            with whole_folder(recipe.out) as folder:
                _write(folder, sets, tokenizer, header, recipe.batch_size)
        else:
            _write_shared(state, Path(recipe.out), sets, tokenizer, header, recipe.batch_size)
    return header


def _crop_recipe(dataset: ImageDataset, num_crops: int) -> str:
    if num_crops == 1 or dataset.crop == "ten":
        return "center" if num_crops == 1 else dataset.crop_recipe
    return f"center, then {dataset.crop_recipe}"


def _write(folder: Path, sets: dict[str, ImageDataset], tokenizer, header: CodeHeader, batch_size: int) -> None:
    left_out = {split: {} for split in sets}
    for split, dataset in sets.items():
        rows = _encode(dataset, split, tokenizer, header, batch_size, 0, 1, left_out[split])
        write_rows(folder / split, rows, header)
    _count(sets, left_out, header)
    _finish(folder, sets, left_out, tokenizer, header)


def _write_shared(state: PartialState, out: Path, sets, tokenizer, header: CodeHeader, batch_size: int) -> None:
    shards = out.with_name(f".{out.name}.shards")
    if state.is_main_process:
        remove_files(shards, _SHARE)
    state.wait_for_everyone()
    rank, world = state.process_index, state.num_processes
    left_out = {split: {} for split in sets}
    for split, dataset in sets.items():
        rows = _encode(dataset, split, tokenizer, header, batch_size, rank, world, left_out[split])
        write_rows(shards / f"{split}-{rank}", rows, header)
    parts = gather_objects(left_out)
    left_out = {split: join_left_out(part[split] for part in parts) for split in sets}
    try:
        _count(sets, left_out, header, warn=state.is_main_process)
    except DataError:
        if state.is_main_process:
            remove_files(shards, _SHARE)
        raise
    state.wait_for_everyone()
    if state.is_main_process:
        with whole_folder(out) as folder:
            for split in SPLITS:
                parts = [datasets.load_from_disk(str(shards / f"{split}-{r}")) for r in range(world)]
                datasets.concatenate_datasets(parts).save_to_disk(str(folder / split))
            _finish(folder, sets, left_out, tokenizer, header)
        remove_files(shards, _SHARE)
    state.wait_for_everyone()


def _count(sets: dict[str, ImageDataset], left_out: dict[str, dict], header: CodeHeader, warn: bool = True) -> None:
    """Enter the counts into the header. Raises DataError if too many pictures could not be read."""
    for split, dataset in sets.items():
        failures = left_out[split].values()
        refuse_too_many(failures, len(dataset))
        if failures and warn:
            text = f"{summary(failures, len(dataset))} and have no rows in the {split} codes"
            warnings.warn(text, stacklevel=2)
    header.num_images = {split: len(dataset) - len(left_out[split]) for split, dataset in sets.items()}
    header.unreadable_pictures = {split: len(left_out[split]) for split in sets}


def _finish(folder: Path, sets: dict[str, ImageDataset], left_out: dict[str, dict], tokenizer, header) -> None:
    header.save(folder)
    for split, dataset in sets.items():
        header.psnr_rgb[split] = _self_check(folder, split, dataset, left_out[split], tokenizer)
    header.save(folder)


def _views(dataset: ImageDataset, split: str, num_crops: int) -> list[ImageDataset]:
    """The centre crop, and for training pictures the data set's own crop after it."""
    centre = dataset.with_crop(crop="center", flip=False)
    if split == "validation" or num_crops == 1:
        return [centre]
    return [dataset if dataset.crop == "ten" else centre, dataset]  # the first of the ten is a centre crop


def _crop_key(index: int, crop: int, length: int) -> tuple[int, int]:
    # A position of its own for each version, as if the run had seen the whole set once a crop.
    return crop * length + index, index


def _encode(
    dataset: ImageDataset,
    split: str,
    tokenizer,
    header: CodeHeader,
    batch_size: int,
    rank: int,
    world: int,
    left_out: dict[int, str],
) -> Iterator[dict]:
    """Yield batches of rows for this process's run of consecutive pictures; fill ``left_out`` with unreadable ones."""
    views = _views(dataset, split, header.num_crops)
    num_crops = header.num_crops if len(views) > 1 else 1
    first, last = rank * len(dataset) // world, (rank + 1) * len(dataset) // world
    bar = tqdm(total=(last - first) * num_crops, unit="row", desc=f"codes, {split}", disable=rank > 0)
    reading = Reading(views[0], range(first, last))
    with bar, torch.no_grad():
        for items in batched(_versions(reading, views, num_crops), batch_size):
            pixels = torch.stack([item["pixel_values"] for item in items]).to(tokenizer.device)
            indices = [item["index"] for item in items]
            yield {
                "codes": flatten_codes(tokenizer.encode(pixels).codes, header.layout),
                "label": [item["label"] for item in items],
                "caption": [dataset.texts[i] if dataset.texts else ("",) for i in indices],
            }
            bar.update(len(items))
    left_out.update(reading.left_out)


def _versions(reading: Reading, views: list[ImageDataset], num_crops: int) -> Iterator[dict]:
    """Every readable picture in all its crops; the centre crop, read by index, tells whether it is readable."""
    for item in reading:
        yield item
        for crop in range(1, num_crops):
            yield _version(views, item["index"], crop)


def _version(views: list[ImageDataset], index: int, crop: int) -> dict:
    return views[0][index] if crop == 0 else views[1][_crop_key(index, crop, len(views[0]))]


@torch.no_grad()
def _self_check(folder: Path, split: str, dataset: ImageDataset, left_out: dict[int, str], tokenizer) -> float:
    """Decode random rows, and hold them against their pictures encoded afresh; return their PSNR in dB."""
    cache = CodeDataset(folder, split)
    generator = torch.Generator().manual_seed(0)
    indices = torch.randperm(len(cache), generator=generator)[:CHECKED_ROWS].tolist()
    crops = torch.randint(cache.num_crops, (len(indices),), generator=generator).tolist()
    views = _views(dataset, split, cache.num_crops)
    used = [index for index in range(len(dataset)) if index not in left_out]
    picked = [_version(views, used[index], crop) for index, crop in zip(indices, crops, strict=True)]
    pixels = torch.stack([item["pixel_values"] for item in picked])
    pixels = pixels.to(tokenizer.device)
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
