"""The frame of a training stage, the same for all: claim the folder, train in it, save the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wvq.distributed import decided_by_first_process, wait_for_all
from wvq.files.atomic import files_into, write_json
from wvq.files.locks import sole_run
from wvq.files.stage_folder import finished_run, start_stage
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
    """

    out: Path
    folder: Path
    resume: bool
    finished: dict[str, Any] | None

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
        result = trainer.run(resume=self.resume) | facts
        model = trainer.model_to_save
        if model is not None:
            with files_into(self.out) as partial:
                trainer.task.save(model, partial)
            write_json(self.out / "result.json", result)
        wait_for_all()
        return result


@contextmanager
def claimed_stage(out: str | Path, recipe: DataclassInstance, resume: bool) -> Iterator[Stage]:
    """Hold the folder of a stage for as long as the block runs, and start or resume a run in it.

    Args:
        out: the folder.
        recipe: saved in it; a resumed run must have been started with the same one.
        resume: go on with the run that is there.

    Raises:
        ConfigError: another run is at work there; or the folder cannot be started in, or resumed from, see
            :func:`wvq.files.stage_folder.start_stage`.
    """
    with sole_run(out):
        folder = decided_by_first_process(lambda: start_stage(out, recipe, resume))
        finished = decided_by_first_process(lambda: finished_run(out)) if resume else None
        yield Stage(Path(out), folder, resume, finished)
