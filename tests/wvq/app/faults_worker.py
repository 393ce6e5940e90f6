"""Trains a tiny tokenizer through the command line, and lets one thing go wrong at a given step.

    python faults_worker.py '{"arguments": [...], "fault": "kill", "step": 7, "rank": 1}'

Faults: ``kill`` (SIGKILL in the middle of the step), ``kill_while_saving`` (SIGKILL when the checkpoint of that step is
written but not complete), ``terminate`` and ``terminate_while_saving`` (SIGTERM), ``full_disk`` (files above ``limit``
bytes fail from then on), null.
With ``rank`` only in that process of several.
"""

import json
import os
import resource
import signal
import sys

from wvq.app.cli import main
from wvq.training import checkpoints
from wvq.training.trainer import Trainer


def install(fault: str | None, step: int, limit: int) -> None:
    done, take_step, flush, terminated = 0, Trainer._step, checkpoints._flush, []

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def faulty_step(self, batches):
        nonlocal done
        done += 1
        if done == step and fault == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if done == step and fault == "full_disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        figures = take_step(self, batches)
        if done == step and fault == "kill":
            kill()
        return figures

    def faulty_flush(folder):
        if done >= step and fault == "kill_while_saving":
            kill()
        if done >= step and fault == "terminate_while_saving" and not terminated:
            terminated.append(step)  # a second one would act at once
            os.kill(os.getpid(), signal.SIGTERM)
        flush(folder)

    Trainer._step, checkpoints._flush = faulty_step, faulty_flush


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    mine = settings.get("rank") in (None, int(os.environ.get("RANK", "0")))
    install(settings["fault"] if mine else None, settings.get("step", 0), settings.get("limit", 0))
    sys.exit(main(settings["arguments"]))
