"""Text features of all captions before a training run, encoded by all processes together, kept on disk or in memory.

Bytes of either: valid tokens x E x 2, for features of width E. Nothing of that is needed where each step encodes its
own captions (``condition.text_cache none``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from wvq.distributed import decided_by_first_process, gather_objects, is_main_process, process_rank, world_size
from wvq.errors import CacheError, ConfigError, WVQError
from wvq.generator.text.cache import (
    HEADER_NAME,
    EncodedPart,
    PartSizes,
    TextFeatures,
    encode_part,
    features_key,
    finish,
    join_parts,
    missing_parts,
    open_features,
    write_part,
)
from wvq.generator.text.captions import CaptionIndex
from wvq.generator.text.encoder import TextEncoder
from wvq.memory import GIB, available_memory

_SAMPLE = 256  # texts from which the size of all is estimated
_SEEN_LATE = 90.0  # seconds until a file of another machine is seen; network file systems cache for a minute


def text_features(
    text_cache: str, folder: Path, texts: CaptionIndex, encoder: TextEncoder, device: torch.device | str = "cpu"
) -> TextFeatures:
    """Features of the texts, from the folder, or encoded by all processes in turn; every process calls it.

    A folder that cannot be written is no error: the features then stay in memory.

    Args:
        text_cache: ``disk`` or ``memory``.
        folder: where ``disk`` keeps them.
        texts: what to encode.
        encoder: on any device; it comes back on the CPU.
        device: where it works.

    Raises:
        ConfigError: there is not enough space on disk or in memory.
        CacheError: the disk is full, or a kept file is damaged.
    """
    sizes = PartSizes(len(texts), encoder.length, encoder.dim)
    if text_cache == "disk":
        # One process looks, for files of another machine may be seen late.
        target = folder / gather_objects(features_key(texts, encoder) if is_main_process() else None)[0]
        if gather_objects((target / HEADER_NAME).is_file())[0]:
            return open_features(target)
        problem = gather_objects(_unwritable(target) if is_main_process() else None)[0]
        if problem is None:
            return _on_disk(target, texts, encoder, device, sizes)
        if is_main_process():
            warnings.warn(f"text features are not kept in {target} ({problem})", stacklevel=2)
    return _in_memory(texts, encoder, device, sizes)


def _on_disk(
    target: Path, texts: CaptionIndex, encoder: TextEncoder, device: torch.device | str, sizes: PartSizes
) -> TextFeatures:
    rank, world = process_rank(), world_size()
    missing = gather_objects(missing_parts(target, sizes))[0]
    with _at_work(encoder, device):
        share = len(missing) / max(1, sizes.parts)
        _agree(_lacking_disk(target, texts, encoder, share) if is_main_process() else None)
        problem: WVQError | None = None
        try:
            for part, (tokens, counts) in _encoded(missing[rank::world], texts, encoder, sizes):
                write_part(target, part, tokens, counts)
        except OSError as error:
            reason = error.strerror or error
            problem = CacheError(f"{target} cannot be written ({reason}); make room, and the same command goes on")
        except WVQError as error:
            problem = error
        _agree(problem)
    decided_by_first_process(lambda: _finish(target, sizes))
    return open_features(target)


def _finish(target: Path, sizes: PartSizes) -> None:
    deadline = time.monotonic() + _SEEN_LATE
    while missing_parts(target, sizes):
        if time.monotonic() >= deadline:
            raise CacheError(
                f"{target} lacks what other processes have written: it is not the same folder for all of them; put the "
                "codes where every machine sees them, or set condition.text_cache to memory or none"
            )
        time.sleep(0.5)
    finish(target, sizes)


def _in_memory(texts: CaptionIndex, encoder: TextEncoder, device: torch.device | str, sizes: PartSizes) -> TextFeatures:
    rank, world = process_rank(), world_size()
    encoded: list[EncodedPart] = []
    with _at_work(encoder, device):
        _agree(_lacking_memory(texts, encoder))
        mine = _encoded(range(rank, sizes.parts, world), texts, encoder, sizes)
        for _ in range(-(-sizes.parts // world)):  # a part of each process at a time, in their order
            part: EncodedPart | None = None
            problem: WVQError | None = None
            try:
                part = next(mine, (0, None))[1]
            except WVQError as error:
                problem = error
            _agree(problem)
            encoded += [features for features in gather_objects(part) if features is not None]
    return join_parts(encoded, sizes)


@contextmanager
def _at_work(encoder: TextEncoder, device: torch.device | str) -> Iterator[None]:
    """Move the encoder to its device, and off it afterwards: training needs the memory."""
    encoder.to(device)
    try:
        yield
    finally:
        encoder.to("cpu")
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()


def _encoded(
    parts: Sequence[int], texts: CaptionIndex, encoder: TextEncoder, sizes: PartSizes
) -> Iterator[tuple[int, EncodedPart]]:
    """Parts with their features; warns once of captions that are cut."""
    cut: list[str] = []
    total = sum(len(sizes.rows(part)) for part in parts)
    hidden = not is_main_process() or sizes.parts < 2
    with tqdm(total=total, desc="encoding captions", unit="text", disable=hidden) as bar:
        for part in parts:
            rows = sizes.rows(part)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                encoded = encode_part(texts.texts(rows), encoder)
            cut += [str(warning.message) for warning in caught]
            bar.update(len(rows))
            yield part, encoded
    if cut:
        more = f" (the first of {len(cut):,} such warnings)" if len(cut) > 1 else ""
        warnings.warn(f"{cut[0]}{more}", stacklevel=2)


def features_bytes(texts: CaptionIndex, encoder: TextEncoder, enough: float = 0) -> int:
    """Bytes of the features of all texts: at most that many if this is ``enough``, or else estimated from a sample."""
    upper_bound = len(texts) * encoder.length * encoder.dim * 2
    if upper_bound <= enough:
        return upper_bound
    rows = np.unique(np.linspace(0, len(texts) - 1, _SAMPLE).astype(np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of captions that are cut; reported when all are encoded
        tokens = sum(int(mask.sum()) for _, mask in encoder.stream(texts.texts(rows)))
    return int(len(texts) * tokens / len(rows) * encoder.dim * 2)


def _lacking_disk(target: Path, texts: CaptionIndex, encoder: TextEncoder, share: float) -> ConfigError | None:
    """The error to raise if the disk cannot hold that share of the features; None if it can."""
    free = shutil.disk_usage(target).free
    needed = features_bytes(texts, encoder, free) * share
    if needed <= free:
        return None
    return ConfigError(
        f"condition.text_cache disk: the features of {len(texts):,} captions need about {needed / GIB:.1f} GiB in "
        f"{target} where {free / GIB:.1f} GiB are free; make room, set it to none, or take a smaller text encoder"
    )


def _lacking_memory(texts: CaptionIndex, encoder: TextEncoder) -> ConfigError | None:
    """The same for memory, where each process of this machine holds all features."""
    free = available_memory(torch.device("cpu"))
    if free is None:
        return None
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    needed = features_bytes(texts, encoder, free / here) * here
    if needed <= free:
        return None
    return ConfigError(
        f"condition.text_cache memory: the features of {len(texts):,} captions need about {needed / GIB:.1f} GiB "
        f"of memory ({here} times {needed / here / GIB:.1f}) where {free / GIB:.1f} GiB are free; "
        "set it to disk or none, or take a smaller text encoder"
    )


def _agree(problem: WVQError | None) -> None:
    """Every process raises what went wrong in any of them: none keeps waiting for the others."""
    for one in gather_objects(problem):
        if one is not None:
            raise one


def _unwritable(folder: Path) -> str | None:
    """Why a folder, which is made if need be, cannot be written; None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return str(error.strerror or error)
