"""Features of real pictures, computed once: kept under the hash of the pictures' pixels and of the network."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from wvq.distributed import gather_objects, is_main_process, wait_for_all
from wvq.errors import ConfigError
from wvq.eval.features.networks import FeatureNetwork, network_settings
from wvq.eval.features.pictures import PictureFeatures, PictureIdentity
from wvq.eval.features.shards import Batch, FeatureShards, collected, stream_features
from wvq.files.locks import sole_run
from wvq.files.user_folders import cache_folder

_FORMAT = 2  # of the files; other formats are ignored


def usable_cache() -> Path | None:
    """Where features of real pictures are kept, made if need be; None, with a warning, where nothing can be written.

    All processes call it together.
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
    if is_main_process():
        text = "features of real pictures are not kept for the next time; set WVQ_CACHE to a folder of yours"
        warnings.warn(f"{problems[0]}: {text}", stacklevel=2)
    return None


def kept_features(
    draw: Callable[..., Batch],
    described: PictureIdentity,
    network: FeatureNetwork,
    kind: str,
    cache: str | Path | None = None,
    batch_size: int = 64,
    progress: bool = True,
    read: Callable[[list[range]], Iterator[Tensor]] | None = None,
) -> PictureFeatures:
    """Features of numbered real pictures, from their folder in the cache, whose name is a hash of both.

    The network runs for those that are missing. Several processes share the work.

    Args:
        draw: gives pictures by their numbers, as :func:`wvq.eval.features.shards.stream_features` takes it.
        described: what the pictures are.
        network: the feature network.
        kind: ``train`` or ``validation``, written beside the features.
        cache: folder of all references; a temporary one if None.
        batch_size: pictures in a batch.
        progress: whether to show a progress bar.
        read: reads ahead for ``draw``.

    Raises:
        ConfigError: several machines without a cache.
        DataError: no pictures, or the cache holds the features of others.
    """
    size, count = described["image_size"], described["num_images"]
    text = f"{_FORMAT} {described['sha256']} {network.weights_sha256} {network.recipe(size)}"
    if not isinstance(size, int) or "pad" in described["crop"]:
        text += f" {size} {described['crop']}"  # squares under the centre crop have the names that they always had
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    identity = {**described, "kind": kind, **network_settings(network, size)}
    with _shared_folder(cache) as references, sole_run(references / f"{kind}-{key}", wait=True):
        shards = FeatureShards(references / f"{kind}-{key}", identity, lasting=cache is not None)
        label = "real features" if progress else None
        stream_features(draw, range(count), network, shards, batch_size, label, read=read)
        return collected(shards, described["crop"], count)


@contextmanager
def _shared_folder(folder: str | Path | None) -> Iterator[Path]:
    """A folder for all processes: the given one, or a temporary one of the main process.

    Raises:
        ConfigError: not all processes see it.
    """
    if folder is not None:
        yield Path(folder)
        return
    own = tempfile.TemporaryDirectory(prefix="wvq-") if is_main_process() else None
    try:
        first = Path(gather_objects(own and own.name)[0])
        if not all(gather_objects(first.is_dir())):
            raise ConfigError("several machines need WVQ_CACHE, a folder that all of them can write")
        yield first
        wait_for_all()
    finally:
        if own is not None:
            own.cleanup()
