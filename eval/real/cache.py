"""Features of real pictures, computed once: kept under the hash of the pictures' pixels and of the network."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from wvq.data.dataset import ImageDataset
from wvq.data.loading import read_all
from wvq.data.pixels import to_uint8
from wvq.data.unreadable import Reading, refuse_too_many, summary
from wvq.distributed import gather_objects, processes, wait_for_all
from wvq.errors import ConfigError, DataError
from wvq.eval.features.networks import FeatureNetwork, network_settings
from wvq.eval.features.pictures import PictureFeatures, evaluation_view, picture_digests, reference_features
from wvq.eval.features.shards import Batch, FeatureShards, collected, stream_features
from wvq.eval.real.archive import ReferenceArchive
from wvq.files.locks import sole_run
from wvq.files.user_folders import cache_folder
from wvq.hardware import loader_processes

_FORMAT = 2  # of the files; others are not looked at


def usable_cache() -> Path | None:
    """Where features of real pictures are kept, made if need be; None, with a warning, where nothing can be written.

    All processes ask together.
    """
    problem, folder = None, None
    try:
        folder = cache_folder() / "references"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"{folder or 'a cache'} cannot be written ({error.strerror})"
    problems = list(filter(None, gather_objects(problem)))
    if not problems:
        return folder
    if processes().is_main_process:
        text = "features of real pictures are not kept for the next time; set WVQ_CACHE to a folder of yours"
        warnings.warn(f"{problems[0]}: {text}", stacklevel=2)
    return None


def real_features(
    dataset: ImageDataset,
    network: FeatureNetwork,
    kind: str,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
    limit: int | None = None,
    cache: Path | None = None,
    progress: bool = True,
    num_workers: int | None = None,
) -> PictureFeatures:
    """What :func:`cached_reference_features` gives; without a cache nothing is kept. Several processes share the work.

    Raises:
        DataError: no pictures, or too many that cannot be read.
    """
    if cache is None and processes().num_processes == 1:
        shown = "real features" if progress else None
        return reference_features(dataset, network, batch_size, indices, shown, limit, num_workers)
    with _shared(cache) as folder:
        return cached_reference_features(
            dataset, network, folder, kind, batch_size, indices, limit, progress, num_workers
        )


@contextmanager
def _shared(folder: Path | None) -> Iterator[Path]:
    """A folder for all processes: the given one, or one of the first process that goes at the end.

    Raises:
        ConfigError: not all processes see it.
    """
    if folder is not None:
        yield folder
        return
    own = tempfile.TemporaryDirectory(prefix="wvq-") if processes().is_main_process else None
    try:
        found = Path(gather_objects(own and own.name)[0])
        if not all(gather_objects(found.is_dir())):
            raise ConfigError("several machines need WVQ_CACHE, a folder that all of them can write")
        yield found
        wait_for_all()
    finally:
        if own is not None:
            own.cleanup()


def cached_reference_features(
    dataset: ImageDataset,
    network: FeatureNetwork,
    cache: Path,
    kind: str,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
    limit: int | None = None,
    progress: bool = True,
    num_workers: int | None = None,
) -> PictureFeatures:
    """What :func:`wvq.eval.features.pictures.reference_features` gives, from ``cache`` where the pictures are there.

    The pictures are read and hashed each time, since only their pixels say whether they are the same; the network
    runs for those that are missing. Several processes share both.

    Args:
        dataset: the pictures.
        network: the feature network.
        cache: folder of all references.
        kind: ``train`` or ``validation``, written beside the features.
        batch_size: pictures in a batch.
        indices: which pictures, in this order; all if not given.
        limit: the most pictures to take; all if not given.
        progress: whether to show progress bars.
        num_workers: loader processes of each process; :func:`wvq.hardware.loader_processes` says how many if None.

    Raises:
        DataError: no pictures, or too many that cannot be read.
    """
    view = evaluation_view(dataset)
    workers = loader_processes(network.device.type, num_workers)
    order = list(range(len(view))) if indices is None else list(indices)
    most = len(order) if limit is None else limit
    digests, left_out = _identify(view, order, most, batch_size, progress, workers)
    if not digests:
        raise DataError("there are no pictures to compute features of")
    used = list(digests)
    sha256 = hashlib.sha256(b"".join(digests.values())).hexdigest()

    def read(runs: list[range]) -> Iterator[Tensor]:
        return read_all(view, [[used[number] for number in run] for run in runs], network.device, workers)

    def draw(run: range, pixels: Tensor) -> Batch:
        return Batch(to_uint8(pixels), list(run))

    described = {"sha256": sha256, "num_images": len(used), "image_size": view.image_size, "crop": view.crop_recipe}
    found = _kept_features(draw, described, network, cache, kind, batch_size, progress, read)
    if found.sha256 != sha256:
        raise DataError(f"{cache} does not hold the features of these pictures; remove it and start again")
    looked_at = len(used) + len(left_out)
    warnings = [f"{summary(left_out.values(), looked_at)}; left out of evaluation"] if left_out else []
    return replace(found, indices=used, num_unreadable=len(left_out), warnings=warnings)


def _identify(
    view: ImageDataset, order: list[int], limit: int, batch_size: int, progress: bool, workers: int = 0
) -> tuple[dict[int, bytes], dict[int, str]]:
    """Hashes by index of the first ``limit`` pictures of ``order`` that can be read, and those left out before them."""
    state = processes()
    digests: dict[int, bytes] = {}
    left_out: dict[int, str] = {}
    position = 0
    shown = progress and state.is_main_process
    with tqdm(total=min(limit, len(order)), desc="real pictures", unit="img", disable=not shown) as bar:
        while position < len(order) and len(digests) < limit:
            chunk = order[position : position + limit - len(digests)]
            position += len(chunk)
            mine = chunk[state.process_index :: state.num_processes]
            reading = Reading(view, mine, num_workers=workers)
            found = {}
            for batch in reading.batches(batch_size):
                hashes = picture_digests(to_uint8(batch["pixel_values"]))
                found |= dict(zip(batch["index"].tolist(), hashes, strict=True))
                bar.update(len(hashes) * state.num_processes)
            parts = gather_objects((found, dict(reading.left_out)))
            there = {index: digest for part, _ in parts for index, digest in part.items()}
            digests |= {index: there[index] for index in chunk if index in there}
            unread = {index: reason for _, part in parts for index, reason in part.items()}
            left_out |= {index: unread[index] for index in chunk if index in unread}
    refuse_too_many(left_out.values(), len(digests) + len(left_out))
    return digests, left_out


def archive_features(
    archive: ReferenceArchive,
    network: FeatureNetwork,
    kind: str,
    batch_size: int = 64,
    cache: Path | None = None,
    progress: bool = True,
) -> PictureFeatures:
    """Features of an archive's pictures, from ``cache`` where they are there; of none if it holds none."""
    if archive.pictures is None:
        return PictureFeatures(torch.empty(0, network.dim), None, archive.sha256, 0, "none")
    pictures = archive.pictures
    described = {"sha256": archive.sha256, "num_images": len(pictures), "image_size": pictures.shape[-1]}
    described["crop"] = "as in the file"

    def draw(run: range) -> Batch:
        return Batch(pictures[run.start : run.stop], list(run))

    with _shared(cache) as folder:
        return _kept_features(draw, described, network, folder, kind, batch_size, progress)


def _kept_features(
    draw: Callable[..., Batch],
    described: dict,
    network: FeatureNetwork,
    cache: Path,
    kind: str,
    batch_size: int,
    progress: bool,
    read: Callable[[list[range]], Iterator[Tensor]] | None = None,
) -> PictureFeatures:
    """Features of the pictures that ``draw`` gives, from their folder in ``cache``, whose name is a hash of both."""
    recipe = network.recipe(described["image_size"])
    text = f"{_FORMAT} {described['sha256']} {network.weights_sha256} {recipe}"
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    identity = {**described, "kind": kind, **network_settings(network, described["image_size"])}
    count, folder = described["num_images"], cache / f"{kind}-{key}"
    with sole_run(folder, wait=True):
        shards = FeatureShards(folder, identity)
        shown = "real features" if progress else None
        stream_features(draw, range(count), network, shards, batch_size, shown, read=read)
    return collected(shards, described["crop"], count)
