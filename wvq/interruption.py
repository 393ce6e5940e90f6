"""A polite end of a run: SIGTERM or Ctrl-C lets the step finish and a checkpoint be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class RunInterrupted(Exception):
    """A run was stopped from outside, after it had saved a checkpoint; says where, in one line.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class StopRequest:
    """Which signal has asked the run to stop; 0 while none has."""

    signal = 0


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the block the first SIGTERM or SIGINT is noted; a second one acts at once, as it would outside."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread set handlers
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def note(number: int, _) -> None:
        request.signal = number
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


def ignore_signals(_: int) -> None:
    """For loader processes: Ctrl-C reaches them too, but the run still needs their batches for its last step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
