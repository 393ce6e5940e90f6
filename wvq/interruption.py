"""An orderly end of a run: after SIGTERM or Ctrl-C the step finishes and a checkpoint is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class RunInterrupted(Exception):
    """A run was stopped from outside, after it had saved a checkpoint; its one line names the folder.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class PassInterrupted(Exception):
    """A pass over data was left early in all processes, since one of them was asked to stop.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, signal: int):
        super().__init__(f"signal {signal}")
        self.signal = signal


class StopRequest:
    """Which signal has asked this process to stop; 0 while none has."""

    signal = 0

    def until_set(self, items: Iterable[T]) -> Iterator[T]:
        """The items of a pass that all processes make, each over its own items; ends early once a signal has come.

        At the end each waits for the others, for as long as it takes.

        Raises:
            PassInterrupted: in all processes, if a signal has come to one of them.
        """
        from wvq.distributed import gather_objects

        for item in items:
            if self.signal:
                break
            yield item
        if number := max(gather_objects(self.signal)):
            raise PassInterrupted(number)

    def raise_if_set(self, where: Callable[[], str]) -> None:
        """Raise RunInterrupted if a signal has come; ``where`` gives the end of its message."""
        if self.signal:
            raise RunInterrupted(f"stopped by {signal.Signals(self.signal).name}; {where()}", self.signal)


class StopAgreement:
    """Lets all processes stop after the same step, though a signal may have come to one of them only.

    Every few seconds each reports its signal, and all act on the joint answer one step later. That needs no wait for a
    GPU, and hardly one for another process. The next report follows after a number of steps that all agree on.

    Args:
        request: the signal of this process.
        seconds: from one round to the next, about; a round is each step where steps are longer.
    """

    def __init__(self, request: StopRequest, seconds: float = 4.0):
        self.request, self.seconds = request, seconds
        self._answer: Callable[[], list[float]] | None = None
        self._interval = 1  # steps
        self._steps, self._since = 0, time.perf_counter()

    def after_step(self) -> int:
        """The signal to stop for now, in all processes the same; 0 for none. All processes call it after each step."""
        from wvq.distributed import largest_later, world_size

        if world_size() == 1:
            return self.request.signal
        if self._answer is not None:
            return self.settle()
        self._steps += 1
        if self._steps >= self._interval:
            now = time.perf_counter()
            self._answer = largest_later([self.request.signal, (now - self._since) / self._steps])
            self._steps, self._since = 0, now
        return 0

    def settle(self) -> int:
        """The answer that is still pending, as of :meth:`after_step`; all call it when there are no more steps."""
        if self._answer is None:
            return 0
        number, pace = self._answer()
        self._answer = None
        # No more than twice as long: steps of the start, or between two evaluations, are no measure of the next ones.
        self._interval = max(1, min(2 * self._interval, int(self.seconds / max(pace, 1e-9))))
        return int(number)


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
    waits: a loader process that ignored it would block the run for ever. Where the system does not report the
    sender, PyTorch's rule stays.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # first: threads inherit the mask
        threading.Thread(target=_end_when_the_parent_signals, daemon=True).start()


def _end_when_the_parent_signals() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
