"""A polite end of a run: SIGTERM or Ctrl-C lets the step finish and a checkpoint be saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


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

    def raise_if_set(self, where: Callable[[], str]) -> None:
        """Raise RunInterrupted, which says what is there, if a signal has come."""
        if self.signal:
            raise RunInterrupted(f"stopped by {signal.Signals(self.signal).name}; {where()}", self.signal)


@contextlib.contextmanager
def stop_on_signal(at_once: Callable[[], str] | None = None) -> Iterator[StopRequest]:
    """Within the block the first SIGTERM or SIGINT is noted; a second one acts at once, as it would outside.

    Args:
        at_once: what the first one raises RunInterrupted with, wherever the block is, for work that may be left at any
            moment. Python drops what is raised within a finaliser, so the block should look at the request as well.
    """
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
        if at_once is not None:
            request.raise_if_set(at_once)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


def end_with_parent_only(_: int) -> None:
    """For loader processes: a signal to the whole group reaches them too, but the last step still needs their batches.

    Ctrl-C is the run's to handle. SIGTERM counts when the parent sends it, which it does at its own exit and then
    waits: a loader process that ignored it would hold the run for ever. Where the sender cannot be told, PyTorch's
    rule stays.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # first: threads inherit the mask
        threading.Thread(target=_end_at_the_word_of_the_parent, daemon=True).start()


def _end_at_the_word_of_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
