"""How far a run is, by pictures and by the clock."""

import pytest

from wvq.settings.train import TrainConfig
from wvq.training import progress
from wvq.training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at ``clock[0]`` seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def steps(run: Progress, clock: list[float], count: int, seconds: float = 1.0) -> None:
    for _ in range(count):
        run.begin_step()
        clock[0] += seconds
        run.end_step()


def test_a_run_of_pictures_ends_with_them(clock):
    run = Progress(TrainConfig(images=20, batch_size=8))
    run.start_clock()
    steps(run, clock, 2)
    assert (run.images_seen, run.share, run.is_over()) == (16, 0.8, False)
    steps(run, clock, 1)
    assert (run.images_seen, run.share, run.is_over()) == (24, 1.0, True)
    assert run.images_per_second == 8.0


def test_the_clock_counts_training_alone(clock):
    run = Progress(TrainConfig(images=10**6, batch_size=8, max_minutes=0.1))
    run.start_clock()
    steps(run, clock, 2)
    clock[0] += 50.0  # an evaluation
    run.start_clock()
    steps(run, clock, 1)
    assert (run.elapsed, run.share, run.is_over()) == (3.0, 0.5, False)
    steps(run, clock, 1, seconds=3.0)
    assert (run.elapsed, run.share, run.is_over()) == (6.0, 1.0, True)


def test_the_decay_begins_where_the_warm_up_ends(clock):
    run = Progress(TrainConfig(images=80, batch_size=8, warmup_images=16))
    shares = []
    for _ in range(10):
        run.begin_step()
        shares.append(run.decay_share)
        run.end_step()
    assert shares == pytest.approx([0, 0, *(i / 9 for i in range(1, 9))])
    assert run.decay_share == 1.0


@pytest.mark.parametrize(("interval", "due"), [(8, [8, 16, 24, 32]), (12, [16, 24]), (16, [16, 32]), (100, [])])
def test_an_interval_is_due_after_the_step_that_passes_it(interval, due):
    run, passed = Progress(TrainConfig(images=80, batch_size=8)), []
    for _ in range(4):
        run.end_step()
        if run.is_due(interval):
            passed.append(run.images_seen)
    assert passed == due


def test_its_state_is_taken_up(clock):
    run, again = (Progress(TrainConfig(images=80, batch_size=8, warmup_images=16)) for _ in range(2))
    run.start_clock()
    steps(run, clock, 4)
    again.load_state_dict(run.state_dict())
    assert (again.images_seen, again.elapsed, again.decay_start) == (32, 4.0, 0.1)
    assert again.decay_share == run.decay_share
