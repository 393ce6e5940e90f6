"""Features of the pictures of a data set that can be read, under the crop of evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from wvq.data.dataset import ImageDataset
from wvq.data.loading import read_all
from wvq.data.pixels import to_uint8
from wvq.data.stream import Pictures, StreamedImages
from wvq.data.unreadable import Reading, refuse_too_many, summary
from wvq.distributed import gather_objects, is_main_process, processes, world_size
from wvq.errors import DataError
from wvq.eval.features.networks import FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures, PictureIdentity, evaluation_view, picture_digests
from wvq.eval.features.shards import Batch
from wvq.eval.real.cache import kept_features
from wvq.hardware import loader_processes


def dataset_features(
    dataset: Pictures,
    network: FeatureNetwork,
    kind: str,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
    limit: int | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    num_workers: int | None = None,
) -> PictureFeatures:
    """Features of a data set's pictures under the centre crop or pad, without those that cannot be read.

    The pictures are read and hashed each time, since only their pixels show whether they are the same; the network
    runs for those that are not in the cache. Several processes share both.

    Args:
        dataset: the pictures.
        network: the feature network.
        kind: ``train`` or ``validation``: what the pictures are.
        batch_size: pictures in a batch.
        indices: which pictures, in this order; all if not given. A stream is taken whole, in its order.
        limit: the most pictures to take; all if not given.
        cache: folder of features of real pictures (:mod:`wvq.eval.real.cache`); none are kept if None.
        progress: whether to show progress bars.
        num_workers: loader processes of each process; :func:`wvq.hardware.loader_processes` decides if None.

    Raises:
        DataError: no pictures, or too many that cannot be read.
    """
    view = evaluation_view(dataset)
    workers = loader_processes(network.device.type, num_workers)
    if isinstance(view, StreamedImages):
        digests, left_out = _identify_stream(view, batch_size, progress, workers)
    else:
        order = list(range(len(view))) if indices is None else list(indices)
        largest = len(order) if limit is None else limit
        digests, left_out = _identify(view, order, largest, batch_size, progress, workers)
    if not digests:
        raise DataError("there are no pictures to compute features of")
    used = list(digests)
    sha256 = hashlib.sha256(b"".join(digests.values())).hexdigest()

    def read(runs: list[range]) -> Iterator[Tensor]:
        return read_all(view, [[used[number] for number in run] for run in runs], network.device, workers)

    def draw(run: range, pixels: Tensor) -> Batch:
        return Batch(to_uint8(pixels), list(run))

    described = PictureIdentity(sha256=sha256, num_images=len(used), image_size=view.image_size, crop=view.crop_recipe)
    features = kept_features(draw, described, network, kind, cache, batch_size, progress, read)
    if features.sha256 != sha256:
        raise DataError(f"{cache} does not hold the features of these pictures; remove it and start again")
    looked_at = len(used) + len(left_out)
    warnings = [f"{summary(left_out.values(), looked_at)}; left out of evaluation"] if left_out else []
    return replace(features, indices=used, num_unreadable=len(left_out), warnings=warnings)


def _identify(
    view: ImageDataset, order: list[int], limit: int, batch_size: int, progress: bool, workers: int = 0
) -> tuple[dict[int, bytes], dict[int, str]]:
    """Hashes by index of the first ``limit`` pictures of ``order`` that can be read, and those left out before them."""
    state = processes()
    digests: dict[int, bytes] = {}
    left_out: dict[int, str] = {}
    position = 0
    visible = progress and is_main_process()
    with tqdm(total=min(limit, len(order)), desc="real pictures", unit="img", disable=not visible) as bar:
        while position < len(order) and len(digests) < limit:
            chunk = order[position : position + limit - len(digests)]
            position += len(chunk)
            mine = chunk[state.process_index :: state.num_processes]
            readable, unread = _hashed(Reading(view, mine, num_workers=workers), batch_size, bar)
            digests |= {index: readable[index] for index in chunk if index in readable}
            left_out |= {index: unread[index] for index in chunk if index in unread}
    refuse_too_many(left_out.values(), len(digests) + len(left_out))
    return digests, left_out


def _identify_stream(
    view: StreamedImages, batch_size: int, progress: bool, workers: int
) -> tuple[dict[int, bytes], dict[int, str]]:
    """Hashes by number of the pictures of a stream that can be read, in order, and the others."""
    state = processes()
    share = view.share(state.process_index, state.num_processes)
    with tqdm(desc="real pictures", unit="img", disable=not (progress and is_main_process())) as bar:
        digests, left_out = _hashed(Reading(view, share, num_workers=workers), batch_size, bar)
    refuse_too_many(left_out.values(), len(digests) + len(left_out))
    return dict(sorted(digests.items())), dict(sorted(left_out.items()))


def _hashed(reading: Reading, batch_size: int, bar: tqdm) -> tuple[dict[int, bytes], dict[int, str]]:
    """Hashes of the pictures that all processes read, and why they left others out, by number."""
    own: dict[int, bytes] = {}
    for batch in reading.batches(batch_size):
        hashes = picture_digests(to_uint8(batch["pixel_values"]))
        own |= dict(zip(batch["index"].tolist(), hashes, strict=True))
        bar.update(len(hashes) * world_size())
    parts = gather_objects((own, dict(reading.left_out)))
    readable = {index: digest for part, _ in parts for index, digest in part.items()}
    return readable, {index: reason for _, part in parts for index, reason in part.items()}
