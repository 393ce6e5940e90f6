"""All that is measured on a GPU, in one run of bounded length.

    python -m benchmarks.gpu --minutes 5 --out runs/gpu [--parts machine sampling] [--tiny]
    python -m benchmarks.gpu --show docs/results/gpu.json

Each part (:data:`benchmarks.gpu_part.PARTS`, in order of value) runs in a process of its own and has its share of the
minutes that are left: one that fails, or has to be ended because it runs past its limit, costs itself alone. A part's
process starts, and imports what it needs, while the one before it runs. Neighbours that measure no time run side by
side. The file ``gpu.json`` in the folder is written anew whenever a part has added a row, so that a run that is cut off
leaves what it has. The tables are printed at the end, and by ``--show`` from a file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_part import PARTS
from benchmarks.gpu_tables import tables
from wvq.devices import named_device
from wvq.errors import ConfigError, DataError
from wvq.files.atomic import read_json, write_json

FILE_NAME = "gpu.json"
LAST_LINES = 12  # of what a part that fails has written
SHOWN = 11_000  # characters of the tables that are printed
ENDING = 2.0  # seconds that are kept for the end of a run
PROGRAM = (sys.executable, "-m", "benchmarks.gpu_part")
IN_TIME = 0.95  # share of a part's limit that its function is given; the rest is for its last row


class PartProcess:
    """A part in a process group of its own: it imports what it needs, and waits for its seconds.

    Args:
        name: of the part.
        device, tiny, program: see :class:`GpuRun`.
    """

    def __init__(self, name: str, device: str, tiny: bool, program: Sequence[str]):
        self.name = name
        self.scratch = tempfile.TemporaryDirectory()
        self.file, self.log = Path(self.scratch.name, "rows.json"), Path(self.scratch.name, "log")
        command = [*program, name, "--device", device, "--file", str(self.file)] + ["--tiny"] * tiny
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )

    def __enter__(self) -> PartProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.end()
        self.scratch.cleanup()

    def begin(self, seconds: float) -> None:
        """Give the part its seconds."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as given:  # one that has failed already
            given.write(f"{seconds:.1f}\n")

    def end(self) -> None:
        """End the process, and what it has started itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def side_by_side(names: Sequence[str]) -> list[list[str]]:
    """Parts in groups of those that run at the same time: neighbours that measure no time."""
    groups: list[list[str]] = []
    for name in names:
        if groups and not PARTS[name].timed and not PARTS[groups[-1][-1]].timed:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


class GpuRun:
    """The parts of a run one after the other, and their figures in a file.

    Args:
        folder: where ``gpu.json`` goes.
        device: what is measured.
        tiny: sizes that a CPU runs in seconds; shows that the parts work.
        minutes: the run ends within them.
        program: what runs a part, see :mod:`benchmarks.gpu_part`.
    """

    def __init__(self, folder: Path, device: str, tiny: bool, minutes: float, program: Sequence[str] = PROGRAM):
        self.folder, self.device, self.tiny, self.program = folder, device, tiny, program
        self.deadline = time.monotonic() + 60 * minutes - ENDING
        self.parts: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {
            "command": f"python -m benchmarks.gpu --minutes {minutes:g}" + " --tiny" * tiny,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": device,
        }

    def run(self, names: Sequence[str]) -> dict[str, Any]:
        """Run these parts; returns what the file holds."""
        groups = side_by_side(names)
        shares = [max(PARTS[name].share for name in group) for group in groups]
        with contextlib.ExitStack() as stack:

            def start(group: list[str]) -> list[PartProcess]:
                parts = [PartProcess(name, self.device, self.tiny, self.program) for name in group]
                return [stack.enter_context(part) for part in parts]

            following = start(groups[0])
            for number in range(len(groups)):
                running, following = following, start(groups[number + 1]) if number + 1 < len(groups) else []
                left = self.deadline - time.monotonic()
                self.run_parts(running, left * shares[number] / sum(shares[number:]))
        return self.result

    @property
    def result(self) -> dict[str, Any]:
        """What is known so far."""
        return {**self.facts, "parts": self.parts}

    def run_parts(self, parts: Sequence[PartProcess], limit: float) -> None:
        """Let parts run side by side, and end what still runs after ``limit`` seconds."""
        running, start = list(parts), time.monotonic()
        for part in parts:
            self._note(part.name, {"state": "running", "limit": round(limit, 1), "rows": []})
            part.begin(IN_TIME * limit)
        while running:
            late = time.monotonic() - start > limit
            for part in list(running):
                code = part.process.poll()
                self._collect(part.name, part.file)
                if code is not None or late:
                    running.remove(part)
                    self._end(part, code, time.monotonic() - start)
            time.sleep(0.1)

    def _end(self, part: PartProcess, code: int | None, seconds: float) -> None:
        """Note how a part has ended; ``code`` is None for one that still runs."""
        part.end()
        self._collect(part.name, part.file)
        row = self.parts[part.name]
        state = "cut off at its limit" if code is None else "failed" if code else row["state"]
        state = "done" if state == "running" else state
        facts: dict[str, Any] = {"state": state, "seconds": round(seconds, 1)}
        if state != "done" and (lines := part.log.read_text(errors="replace").splitlines()):
            facts["last_lines"] = lines[-LAST_LINES:]
        self._note(part.name, row | facts)
        print(f"{part.name}: {state}, {facts['seconds']} s", flush=True)

    def _collect(self, name: str, file: Path) -> None:
        """Take over the rows that a part has written since."""
        if not file.exists():
            return
        written = read_json(file, DataError, f"{file} is missing")
        part = self.parts[name] | {"rows": written["rows"]}
        if "missing" in written:
            part["state"] = f"missing: {written['missing']}"
        if part != self.parts[name]:
            self._note(name, part)

    def _note(self, name: str, part: dict[str, Any]) -> None:
        self.parts[name] = part
        write_json(self.folder / FILE_NAME, self.result)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="the run ends within them")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="these alone, in this order")
    parser.add_argument("--device", help="cuda if not given; with --tiny, cpu where there is no GPU")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to see that the parts run")
    parser.add_argument("--show", type=Path, help="print the tables of such a file, and measure nothing")
    arguments = parser.parse_args()
    if arguments.show:
        print(tables(read_json(arguments.show, DataError, f"{arguments.show} is missing")))
        return
    device = arguments.device or ("cpu" if arguments.tiny and not torch.cuda.is_available() else "cuda")
    try:
        named_device(device)
    except ConfigError as error:
        parser.error(str(error))
    run = GpuRun(arguments.out, device, arguments.tiny, arguments.minutes)
    shown = tables(run.run(arguments.parts))
    print(shown[:SHOWN])
    if len(shown) > SHOWN:
        print(f"(cut; all of it: python -m benchmarks.gpu --show {arguments.out / FILE_NAME})")


if __name__ == "__main__":
    main()
