"""Checkpoints of a run: one folder each, complete or absent; the last few are kept."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from wvq.distributed import decided_by_first_process, is_lost_process, is_main_process, wait_for_all
from wvq.errors import CheckpointError, first_line
from wvq.models.reading import DAMAGES

CHECKPOINTS = "checkpoints"
STATE_NAME = "run.pt"


def find_checkpoints(folder: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; folders of other names are the user's own."""
    root = Path(folder) / CHECKPOINTS
    return sorted(path for path in root.glob("*") if path.is_dir() and re.fullmatch(r"\d{12}", path.name))


def latest_checkpoint(folder: str | Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    checkpoints = find_checkpoints(folder)
    if not checkpoints:
        raise CheckpointError(
            f"{Path(folder) / CHECKPOINTS} holds no complete checkpoint to resume from; remove "
            f"{Path(folder).parent} and start again"
        )
    return checkpoints[-1]


class Run(Protocol):
    """State that a run saves beside the accelerator's models and optimisers: tensors, numbers and texts."""

    def state_dict(self) -> dict:
        """The state to save."""

    def load_state_dict(self, state: dict) -> None:
        """Restore a saved state."""


def save_checkpoint(accelerator: Accelerator, run: Run, folder: str | Path, images_seen: int, keep: int) -> Path:
    """Write a run into a temporary folder, rename it when it is on the disk, drop old ones.

    Args:
        accelerator: holds the models and optimisers.
        run: the rest.
        folder: the run's training folder.
        images_seen: names the checkpoint.
        keep: how many checkpoints stay.

    Raises:
        CheckpointError: the disk is full or cannot be written; the earlier checkpoints are untouched.
    """
    root = Path(folder) / CHECKPOINTS
    target, partial = root / f"{images_seen:012d}", root / f"{images_seen:012d}.partial"
    if decided_by_first_process(target.exists):
        return target
    try:
        decided_by_first_process(lambda: _remove_partial(root))
        accelerator.save_state(str(partial))
        state = run.state_dict()  # in all processes: it may gather from them
        wait_for_all()
        if is_main_process():
            torch.save(state, partial / STATE_NAME)
            _flush(partial)
            partial.rename(target)
            for old in find_checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of these
        if is_lost_process(error):  # which says why; the disk may be sound
            raise
        shutil.rmtree(partial, ignore_errors=True)
        saved = find_checkpoints(folder)
        rest = f"the last good one is {saved[-1]}; make room and resume" if saved else "none was saved before"
        raise CheckpointError(f"checkpoint {target} could not be written ({first_line(error)}); {rest}") from error
    wait_for_all()
    return target


def _remove_partial(root: Path) -> None:
    for stale in root.glob("*.partial"):
        if re.fullmatch(r"\d{12}\.partial", stale.name):  # a folder of another name is the user's
            shutil.rmtree(stale)


def load_checkpoint(accelerator: Accelerator, run: Run, checkpoint: Path) -> None:
    """Load a checkpoint into a run.

    Pickles are read by torch's restricted reader, which makes tensors and numbers and runs nothing. That is why the
    run's own state is none of Accelerate's registered objects: those it unpickles without restrictions.

    Raises:
        CheckpointError: the checkpoint is damaged, or holds something else.
    """
    if not (checkpoint / STATE_NAME).is_file():
        raise CheckpointError(
            f"checkpoint {checkpoint} lacks {STATE_NAME}: it is damaged or of another version of wvq; remove "
            f"{checkpoint.parent.parent.parent} and start again"
        )
    try:
        accelerator.load_state(str(checkpoint))
        # Each process of a sharded run would read the whole average, of which the first hands out the shards.
        mapped = accelerator.is_fsdp2
        run.load_state_dict(torch.load(checkpoint / STATE_NAME, map_location="cpu", weights_only=True, mmap=mapped))
    except (torch.OutOfMemoryError, torch.distributed.DistError):  # nothing is wrong with the checkpoint
        raise
    except (SafetensorError, UnpicklingError, EOFError, *DAMAGES) as error:
        if is_lost_process(error):
            raise
        raise CheckpointError(
            f"checkpoint {checkpoint} cannot be read ({first_line(error)}); remove it, and --resume goes on from the "
            "one before"
        ) from error


def _flush(folder: Path) -> None:
    """Wait until all files are on the disk: after a power cut a renamed folder could otherwise hold empty files."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
