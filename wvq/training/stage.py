"""The frame of a training stage, the same for all: claim the folder, train in it, save the result."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wvq.data.splits import check_pictures
from wvq.distributed import decided_by_first_process, is_main_process, wait_for_all
from wvq.files.atomic import files_into, write_json
from wvq.files.fingerprint import DataFingerprint
from wvq.files.locks import sole_run
from wvq.files.names import FINGERPRINT_NAME, RECIPE_NAME
from wvq.files.stage_folder import finished_run, start_stage
from wvq.settings.data import DataConfig
from wvq.training.trainer import Trainer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass
class Stage:
    """A stage that holds its folder.

    Attributes:
        out: folder of the trained model, its recipe and its result.
        folder: folder in it, of the run's log, pictures and checkpoints.
        resume: whether the run goes on with what is there.
        finished: the result of a resumed run that had come to its end before: nothing is left to train.
        trains: whether training has begun.
    """

    out: Path
    folder: Path
    resume: bool
    finished: dict[str, Any] | None
    trains: bool = False

    def train(self, trainer: Trainer[Any], **facts: Any) -> dict[str, Any]:
        """Run the trainer, and save the model and the result; all processes end together.

        Args:
            trainer: trains the stage's model; its logs and checkpoints go into :attr:`folder`.
            facts: further fields of the result.

        Returns:
            What :meth:`Trainer.run` returns, and the facts; as saved in ``result.json``.

        Raises:
            RunInterrupted, CheckpointError: see :meth:`Trainer.run`.
        """
        self.trains = True
        result = trainer.run(resume=self.resume) | facts
        model = trainer.model_to_save
        if model is not None:
            with files_into(self.out) as partial:
                trainer.task.save(model, partial)
            write_json(self.out / "result.json", result)
        wait_for_all()
        return result


@contextmanager
def claimed_stage(
    out: str | Path,
    recipe: DataclassInstance,
    resume: bool,
    fingerprint: DataFingerprint | None = None,
    data: DataConfig | None = None,
) -> Iterator[Stage]:
    """Hold the folder of a stage for as long as the block runs, and start or resume a run in it.

    A start that fails before its training leaves nothing behind, so that the next one is not refused.

    Args:
        out: the folder.
        recipe: saved in it; a resumed run must have been started with the same one.
        resume: go on with the run that is there.
        fingerprint: of the pictures, saved in the folder; those of a resumed run are compared with it.
        data: which pictures the stage reads; None if it reads codes.

    Raises:
        ConfigError: another run is at work there; or the folder cannot be started in, or resumed from, see
            :func:`wvq.files.stage_folder.start_stage`; or a resumed run has been trained on what is held out now.
    """
    with sole_run(out):
        folder = decided_by_first_process(lambda: start_stage(out, recipe, resume))
        finished = decided_by_first_process(lambda: finished_run(out)) if resume else None
        stage = Stage(Path(out), folder, resume, finished)
        try:
            if fingerprint is not None and finished is None:
                decided_by_first_process(lambda: _keep_fingerprint(Path(out), fingerprint, data, resume))
            yield stage
        except BaseException:
            if not (resume or stage.trains) and is_main_process():
                _remove_start(stage)
            raise


def _remove_start(stage: Stage) -> None:
    """Remove what a start has written: with a recipe or a training folder there before, it would have been refused."""
    for name in (RECIPE_NAME, FINGERPRINT_NAME):
        (stage.out / name).unlink(missing_ok=True)
    shutil.rmtree(stage.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # other files lie there
        stage.out.rmdir()


def _keep_fingerprint(out: Path, fingerprint: DataFingerprint, data: DataConfig | None, resume: bool) -> None:
    """Save the fingerprint beside the weights to come, after a comparison with that of a run that goes on."""
    before = DataFingerprint.read(out) if resume else None
    if before is not None:
        for line in check_pictures(before, fingerprint, out, data, resumed=True):
            warnings.warn(line, stacklevel=2)
    fingerprint.after(before).save(out)
