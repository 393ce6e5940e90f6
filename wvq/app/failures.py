"""How a command ends on bad input: with one line, printed once for all processes that were launched together.

A launcher (torchrun, ``accelerate launch``) ends a run whose process fails with its own traceback and exit code 1.
A process cannot prevent that; ``accelerate launch --quiet`` does where it starts one process. Of several, the
launcher ends with the reason that the first one to fail has left in the file named by ``TORCHELASTIC_ERROR_FILE``; so
the line is written there too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from wvq.files.atomic import write_text
from wvq.plain_output import one_line

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def fail(program: str, problem: object) -> NoReturn:
    """End the process with ``<program>: error: <problem>`` on standard error.

    Raises:
        SystemExit: with code 2, always.
    """
    line = f"{program}: error: {one_line(problem)}"
    _print_once(line)
    _report_to_launcher(line)
    raise SystemExit(2)


def end_after_another(program: str) -> NoReturn:
    """End a process that has lost another one of its run: no reason for the launcher, which shows that of the other.

    Raises:
        SystemExit: with code 1, always.
    """
    _print_once(f"{program}: another process of this run has ended")
    raise SystemExit(1)


def _print_once(line: str) -> None:
    if _is_first_to_print(line):
        sys.stderr.write(line + "\n")  # in one write: other processes write there too
        sys.stderr.flush()


def _is_first_to_print(line: str) -> bool:
    """Whether no other process that the same launcher has started on this machine has printed it."""
    file, rank = os.environ.get(_ERROR_FILE), os.environ.get("LOCAL_RANK", "")
    if not file:
        return True
    # The file is <attempt>/<local rank>/error.json in a folder that the launcher removes at its end.
    marker = Path(file).parent.parent / f"printed-{hashlib.sha256(line.encode()).hexdigest()[:16]}"
    try:
        with marker.open("x") as opened:
            opened.write(rank)
        return True
    except FileExistsError:
        with contextlib.suppress(OSError):  # the launcher has removed it meanwhile
            return marker.read_text() == rank  # the same process's second command
        return True
    except OSError:
        return True


def _report_to_launcher(line: str) -> None:
    file = os.environ.get(_ERROR_FILE)
    if not file:
        return
    # The form of torch.distributed.elastic, which shows what stands in place of the traceback.
    reason = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
    with contextlib.suppress(OSError):  # the launcher then reports no reason
        write_text(file, json.dumps({"message": reason}))  # at once: the launcher may end this process meanwhile
