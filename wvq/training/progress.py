"""How far a run is: pictures seen, seconds of training, and what follows from them."""

from __future__ import annotations

import time

from accelerate.utils import broadcast_object_list

from wvq.distributed import world_size
from wvq.settings.train import TrainConfig


class Progress:
    """Counts the pictures and the training time of a run, which may end by either.

    Args:
        config: number of pictures, bound on the time, batch size and warm-up.

    Attributes:
        images_seen: training pictures so far; every repetition counts.
        elapsed: seconds of training so far, without evaluation and saving.
        decay_start: share of the run that was over when the learning rate reached its peak.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.images_seen, self.elapsed, self.decay_start = 0, 0.0, 0.0
        self._last_step_at = 0.0

    def start_clock(self) -> None:
        """Count the time from now on: what the run did since the last step was no training."""
        self._last_step_at = time.perf_counter()

    def begin_step(self) -> None:
        """Note that a step begins at ``images_seen``."""
        if self.images_seen < self.config.warmup_images:
            self.decay_start = self.share

    def end_step(self) -> None:
        """Count the pictures and the time of the step."""
        self.images_seen += self.config.batch_size
        now = time.perf_counter()
        self.elapsed, self._last_step_at = self.elapsed + now - self._last_step_at, now

    @property
    def share(self) -> float:
        """Share of the run that is over, by pictures or by clock, whichever is further; in [0, 1]."""
        clock = self.elapsed / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(self.images_seen / self.config.images, clock))

    @property
    def decay_share(self) -> float:
        """Share of what comes after the warm-up that is over; 0 in the warm-up, 1 at the end of the run."""
        return (self.share - self.decay_start) / max(1 - self.decay_start, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Training pictures a second so far."""
        return round(self.images_seen / max(self.elapsed, 1e-9), 1)

    def is_over(self) -> bool:
        """Whether the run has seen all its pictures or used up its time. All processes call it together."""
        if self.images_seen >= self.config.images:
            return True
        if self.config.max_minutes is None:
            return False
        if world_size() > 1:  # clocks differ: all follow the first process's, to stop at the same step
            self.elapsed = broadcast_object_list([self.elapsed])[0]
        return self.elapsed >= 60 * self.config.max_minutes

    def is_due(self, interval: int) -> bool:
        """Whether the last step passed a multiple of ``interval`` pictures."""
        return self.images_seen // interval > (self.images_seen - self.config.batch_size) // interval

    def state_dict(self) -> dict[str, float]:
        """The state of an exact resume."""
        return {"images_seen": self.images_seen, "elapsed": self.elapsed, "decay_start": self.decay_start}

    def load_state_dict(self, state: dict) -> None:
        """Restore the state that :meth:`state_dict` gave."""
        self.images_seen, self.elapsed = state["images_seen"], state["elapsed"]
        self.decay_start = state.get("decay_start", 0.0)  # in earlier versions rates decayed from the start
