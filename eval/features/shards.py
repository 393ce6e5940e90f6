"""Features of a numbered stream of pictures: drawn or read batch by batch, by any number of processes, resumable.

Each batch becomes one file, written when it is complete. Files of other processes, and of a run that was stopped, are
used, so nothing is computed twice, and the pictures are the same on any number of processes, but for rounding. Their
order is that of the numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from wvq.checks import require
from wvq.distributed import decided_by_first_process, gather_objects, is_main_process, processes, wait_for_all
from wvq.errors import ConfigError, DataError, first_line
from wvq.eval.features.networks import FeatureNetwork, FeatureOutput
from wvq.eval.features.pictures import PictureFeatures, picture_digests
from wvq.files.atomic import remove_files, whole_file
from wvq.files.locks import sole_run
from wvq.files.names import IDENTITY_NAME
from wvq.files.work_folder import claim_work_folder
from wvq.interruption import stop_on_signal
from wvq.settings.size import SIZE, Size, size_of

_SUFFIX = ".safetensors"
_SHARD = re.compile(rf"(\d{{8,}})-(\d{{8,}}){re.escape(_SUFFIX)}")
_PARTIAL = re.compile(rf"\.({_SHARD.pattern}|{re.escape(IDENTITY_NAME)})\.\d+\.partial")  # a killed process's


@dataclass
class Batch:
    """Pictures of some numbers of the stream.

    Attributes:
        images: uint8 (B, 3, H, W).
        numbers: the number of each picture in the stream.
        scores: further figures of each picture, (B,), by name.
    """

    images: Tensor
    numbers: list[int]
    scores: dict[str, Tensor] = field(default_factory=dict)


class FeatureShards:
    """The files of a stream in a folder.

    Args:
        folder: new, empty, or left by a run of the same ``identity``.
        identity: what the pictures and features depend on.
        lasting: whether a later run can find the folder.
        former: what earlier versions wrote instead of some values of ``identity``; accepted, with a warning.

    Raises:
        ConfigError: the folder holds something else, or the shards of another identity.
    """

    def __init__(self, folder: str | Path, identity: dict, lasting: bool = True, former: dict | None = None):
        self.folder, self.lasting = Path(folder), lasting
        decided_by_first_process(
            lambda: claim_work_folder(folder, identity, task="an evaluation", output="result file", former=former)
        )

    def files(self) -> list[Path]:
        """The complete files, in order of their numbers."""
        return shard_files(self.folder)

    def done(self) -> set[int]:
        """Numbers that need no more work."""
        return numbers_in(self.folder)

    def write(self, numbers: range, batch: Batch, output: FeatureOutput, keep_pixels: bool) -> None:
        """Write the file of one batch; it is complete or absent.

        Raises:
            DataError: the disk is full or cannot be written.
        """
        tensors = {"numbers": torch.tensor(batch.numbers, dtype=torch.int64)}
        pixels = batch.images.cpu().contiguous()
        digests = np.frombuffer(b"".join(picture_digests(pixels)), np.uint8)
        tensors["digests"] = torch.from_numpy(digests.copy()).view(-1, 32)
        for name, value in zip(output._fields, output, strict=True):
            if value is not None:
                tensors[name] = value.cpu().contiguous().clone()  # views of one tensor cannot be saved
        tensors |= {name: value.cpu().contiguous() for name, value in batch.scores.items()}
        if keep_pixels:
            tensors["pixels"] = pixels
        file = self.folder / f"{numbers.start:08d}-{numbers.stop:08d}{_SUFFIX}"
        metadata = {"image_size": json.dumps(size_of(pixels.shape))} | {
            name: _sha256(value) for name, value in tensors.items()
        }
        try:
            with whole_file(file) as partial:
                save_file(tensors, partial, metadata=metadata)
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{file} could not be written ({first_line(error)}); make room, and the same command goes on from there"
            ) from error

    def read(self, names: tuple[str, ...]) -> tuple[dict[str, Tensor], Size]:
        """Tensors of all pictures in order, and the pictures' size.

        Raises:
            DataError: a file that is damaged, or no picture at all.
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        size: Size = 0
        for file in self.files():
            tensors, size = _tensors(file, names)
            for name, value in tensors.items():
                parts[name].append(value)
        if not any(len(part) for part in parts["numbers"]):
            raise DataError("there are no pictures to compute features of")
        return {name: torch.cat(values) for name, values in parts.items() if values}, size

    def pictures(self) -> Iterator[Tensor]:
        """The pixels of all pictures, uint8 (B, 3, H, W), in order and each once; one file's in memory at a time.

        Raises:
            DataError: a file that is damaged.
        """
        next_number = 0
        for file in self.files():
            tensors, _ = _tensors(file, ("numbers", "pixels"))
            new = tensors["numbers"] >= next_number  # two runs may have written one picture
            if new.any():
                yield tensors["pixels"][new]
                next_number = int(tensors["numbers"].max()) + 1


def _tensors(file: Path, names: tuple[str, ...]) -> tuple[dict[str, Tensor], Size]:
    """Those of the named tensors that a file holds, and the pictures' size."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in set(names) & set(opened.keys())}
        for name, value in tensors.items():
            if _sha256(value) != metadata.get(name):
                raise SafetensorError(f"{name} is not what was written")
        return tensors, require("image_size", json.loads(metadata["image_size"]), SIZE)
    except (SafetensorError, OSError, KeyError, ValueError, ConfigError) as error:
        raise DataError(f"{file} is damaged ({first_line(error)}); remove it and start again") from error


def holds_shards(folder: str | Path) -> bool:
    """Whether an earlier run has begun in a folder."""
    return (Path(folder) / IDENTITY_NAME).exists()


def shard_files(folder: str | Path) -> list[Path]:
    """The complete files of a stream in a folder, in order of their numbers; other files there are ignored."""
    return sorted(file for file in Path(folder).glob(f"*{_SUFFIX}") if _SHARD.fullmatch(file.name))


def numbers_in(folder: Path) -> set[int]:
    """Numbers of the pictures whose features are in a folder, by the names of its files."""
    numbers: set[int] = set()
    for file in shard_files(folder):
        start, stop = file.stem.split("-")
        numbers.update(range(int(start), int(stop)))
    return numbers


@contextmanager
def working_folder(work: str | Path | None) -> Iterator[Path]:
    """The folder that an evaluation works in, locked against others: the given one, or a temporary one of one process.

    Raises:
        ConfigError: several processes without a folder, or one that another run holds.
    """
    if work is None and processes().num_processes > 1:
        raise ConfigError("an evaluation on several processes needs a result file (--out), beside which they work")
    with ExitStack() as stack:
        folder = work or stack.enter_context(tempfile.TemporaryDirectory(prefix="wvq-evaluation-"))
        stack.enter_context(sole_run(folder))
        begun = holds_shards(folder)
        try:
            yield Path(folder)
        except BaseException:
            # A folder that this run began and left no picture in would block a command with other settings.
            if is_main_process() and not begun and holds_shards(folder) and not shard_files(folder):
                remove_shards(folder)
            raise


def _sha256(tensor: Tensor) -> str:
    """Hash of a tensor's bytes: a safetensors file has no checksum of its own."""
    return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()


def remove_shards(folder: str | Path) -> None:
    """Remove the files of a stream, and the folder if it holds nothing else.

    The identity file goes last, so that a removal cut short can be resumed.
    """
    for names in (_PARTIAL, _SHARD, re.compile(re.escape(IDENTITY_NAME))):
        remove_files(folder, names)


def stream_features(
    draw: Callable[..., Batch],
    numbers: range,
    network: FeatureNetwork,
    shards: FeatureShards,
    batch_size: int,
    progress: str | None = None,
    keep_pixels: bool = False,
    read: Callable[[list[range]], Iterator[Tensor]] | None = None,
) -> None:
    """Draw the pictures of ``numbers`` that are not there yet, each process its share, and write their features.

    Args:
        draw: pictures of consecutive numbers, from these (a range) and, where there is ``read``, what that gives.
        numbers: which numbers of the stream.
        network: the feature network.
        shards: where the files go.
        batch_size: most pictures at once.
        progress: label of the progress bar; no bar if None.
        keep_pixels: whether the files hold the pictures too.
        read: reads ahead what ``draw`` needs for each of some ranges.

    Raises:
        RunInterrupted: SIGTERM or Ctrl-C came; the batches drawn so far are complete.
    """
    state = processes()
    # The main process alone looks: the files change while the others start.
    missing = gather_objects(sorted(set(numbers) - shards.done()) if is_main_process() else None)[0]
    batches = list(_runs(missing, batch_size))
    mine = batches[state.process_index :: state.num_processes]
    total, num_done = sum(map(len, mine)), len(numbers) - len(missing)
    visible = progress is not None and is_main_process()
    with (
        tqdm(total=total + num_done, initial=num_done, desc=progress, unit="img", disable=not visible) as bar,
        stop_on_signal() as request,
    ):
        for run, needed in zip(mine, ((pixels,) for pixels in read(mine)) if read else repeat(()), strict=False):
            batch = draw(run, *needed)
            output = network(batch.images)
            shards.write(run, batch, output, keep_pixels)
            bar.update(len(run))
            request.raise_if_set(lambda: _progress(shards, numbers))
    wait_for_all()


def _progress(shards: FeatureShards, numbers: range) -> str:
    measured = f"{len(shards.done()):,} of {numbers.stop:,} pictures were measured"
    return f"{measured}; the same command goes on with those in {shards.folder}" if shards.lasting else measured


def collected(shards: FeatureShards, crop_recipe: str, count: int) -> PictureFeatures:
    """Features of the pictures 0 to ``count`` - 1, in order.

    Raises:
        DataError: a file that is damaged, or pictures that are missing.
    """
    names = ("numbers", "digests", "features", "logits", "spatial")
    tensors, size = shards.read(names)
    numbers, first = np.unique(tensors["numbers"].numpy(), return_index=True)  # two runs may have written one picture
    if len(numbers) != count:
        available = f"{len(numbers):,} of {count:,} pictures"
        raise DataError(f"{shards.folder} holds the features of {available}; remove it and start again")
    tensors = {name: value[torch.from_numpy(first)] for name, value in tensors.items()}
    digest = hashlib.sha256(tensors["digests"].numpy().tobytes()).hexdigest()
    return PictureFeatures(
        tensors["features"],
        tensors.get("logits"),
        digest,
        size,
        crop_recipe,
        indices=tensors["numbers"].tolist(),
        spatial=tensors.get("spatial"),
    )


def _runs(numbers: list[int], batch_size: int) -> Iterator[range]:
    """Consecutive numbers in ranges of at most ``batch_size``."""
    run: list[int] = []
    for number in numbers:
        if run and (number != run[-1] + 1 or len(run) == batch_size):
            yield range(run[0], run[-1] + 1)
            run = []
        run.append(number)
    if run:
        yield range(run[0], run[-1] + 1)
