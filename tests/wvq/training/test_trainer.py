"""The training loop: schedule, accumulation, skipped steps, what it logs, exact resume, the clock, checkpoints."""

import itertools
import shutil
import time

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from tests.wvq.training.regression import Points, trainer
from wvq.errors import CheckpointError, ConfigError
from wvq.interruption import RunInterrupted
from wvq.training.checkpoints import find_checkpoints
from wvq.training.tracking import read_log

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_a_run_learns_and_logs(tmp_path):
    result = trainer(tmp_path, images=480, learning_rate=0.2, evaluate_every=160).run()
    rows = read_log(tmp_path)
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 60
    assert losses[-1] < 0.01 * losses[0]
    assert all(row["twice"] == pytest.approx(2 * row["loss"]) for row in rows if row["kind"] == "train")
    assert [row["images"] for row in rows if row["kind"] == "validation"] == [160, 320, 480]
    assert result["images"] == 480
    assert result["skipped_steps"] == 0
    assert result["cut_short"] is False
    assert result["weight"] == pytest.approx(-0.5, abs=0.1)
    assert result["images_per_second"] > 0
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == [
        "000000160.png",
        "000000320.png",
        "000000480.png",
    ]


def test_a_log_row_is_the_mean_since_the_last(tmp_path):
    trainer(tmp_path / "each", log_every=8).run()
    trainer(tmp_path / "four", log_every=32).run()
    each = [row["loss"] for row in read_log(tmp_path / "each") if row["kind"] == "train"]
    four = [row for row in read_log(tmp_path / "four") if row["kind"] == "train"]
    assert [row["images"] for row in four] == [32, 64]
    assert four[1]["loss"] == pytest.approx(sum(each[4:8]) / 4, rel=1e-6)


def test_the_rate_that_is_logged_is_the_schedules(tmp_path):
    run = trainer(tmp_path, schedule="linear", final_learning_rate=0.0, warmup_images=16)
    run.run()
    rates = [row["learning_rate_matrices"] for row in read_log(tmp_path) if row["kind"] == "train"]
    # Up to the peak in two steps; the decay begins there.
    expected = [0.025] + [0.05 * (1 - i / 9) for i in range(9)]
    assert rates == pytest.approx(expected)


def test_a_resumed_run_goes_on_with_its_decay(tmp_path):
    settings = {"schedule": "cosine", "final_learning_rate": 0.0, "warmup_images": 32, "save_every": 40}
    whole = trainer(tmp_path / "whole", **settings)
    whole.run()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "000000000080")
    trainer(tmp_path / "cut", **settings).run(resume=True)
    rates = [[row.get("learning_rate_matrices") for row in read_log(tmp_path / name)] for name in ("whole", "cut")]
    assert rates[0] == rates[1]
    assert max(rates[0][:10]) == rates[0][3] == 0.05


def test_a_checkpoint_without_the_start_of_its_decay_keeps_its_schedule(tmp_path):
    """Rates used to decay from the start of the run, and would jump."""
    run = trainer(tmp_path, schedule="linear", final_learning_rate=0.0, warmup_images=16)
    state = run.state_dict() | {"images_seen": 40}
    del state["decay_start"]
    run.load_state_dict(state)
    assert run.progress.decay_share == run.progress.share == 0.5
    run.load_state_dict(state | {"images_seen": 0})
    run.run()
    assert run.progress.decay_start == 0.1  # one still in the warm-up reaches its peak


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_equal_the_batch(tmp_path, monkeypatch, parts):
    # What a launcher that was told nothing leaves in the environment.
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    whole = trainer(tmp_path / "whole", clip_norm=0.0)
    whole.run()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    cut = trainer(tmp_path / "cut", clip_norm=0.0, gradient_accumulation_steps=parts)
    assert cut.micro_batch == 8 // parts
    cut.run()
    torch.testing.assert_close(cut.raw_model.state_dict(), whole.raw_model.state_dict(), rtol=1e-5, atol=1e-6)
    a, b = ([row["loss"] for row in read_log(tmp_path / name) if row["kind"] == "train"] for name in ("whole", "cut"))
    assert a == pytest.approx(b, rel=1e-4)
    norms = [
        [row["gradient_norm_network"] for row in read_log(tmp_path / name) if row["kind"] == "train"]
        for name in ("whole", "cut")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_the_gradient_is_clipped(tmp_path):
    run, norms = trainer(tmp_path, clip_norm=0.1), []
    run.optimizers[0].optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([p.grad.flatten() for p in run.raw_model.parameters()]).norm().item())
    )
    run.run()
    assert max(norms) <= 0.1001
    logged = [row["gradient_norm_network"] for row in read_log(tmp_path) if row["kind"] == "train"]
    assert logged[0] > 0.2  # the norm before clipping


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path, clip_norm):
    run, weights = trainer(tmp_path, data=Points(spoiled=[20, 21, 37]), clip_norm=clip_norm), []
    batches = iter(run._loader())
    run.progress.start_clock()
    for _ in range(10):
        run._step(batches)
        weights.append(run.raw_model.linear.weight.detach().clone())
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert changed == [True, False, True, False, True, True, True, True, True]
    assert torch.isfinite(weights[-1]).all()
    assert int(run.optimizers[0].skipped) == 2
    steps = {int(state["step"]) for state in run.optimizers[0].optimizer.state.values()}
    assert steps == {8}  # a skipped step does not age the optimiser


def test_skipped_steps_are_reported(tmp_path):
    result = trainer(tmp_path, data=Points(spoiled=[20])).run()
    assert result["skipped_steps"] == 1
    assert [row["skipped_steps"] for row in read_log(tmp_path) if row["kind"] == "train"][1:4] == [0, 1, 1]


def test_the_count_of_an_earlier_version_goes_on(tmp_path):
    run = trainer(tmp_path, data=Points(spoiled=[20]))
    run.load_state_dict(run.state_dict() | {"skipped": {"": torch.tensor(3.0)}})
    assert run.run()["skipped_steps"] == 4


def test_the_average_is_what_is_evaluated(tmp_path):
    run = trainer(tmp_path, ema_decay=0.9)
    result = run.run()
    assert run.averaged_model is run.ema.model
    assert result["weight"] == pytest.approx(run.ema.model.linear.weight.sum().item())
    assert result["weight"] != pytest.approx(run.raw_model.linear.weight.detach().sum().item(), abs=1e-4)
    assert run.ema.updates == 10


def test_what_a_step_draws_follows_from_its_position(tmp_path):
    whole = trainer(tmp_path, save_every=40)
    whole.run()
    assert len(set(whole.task.draws)) == 10
    shutil.rmtree(find_checkpoints(tmp_path)[-1])
    cut = trainer(tmp_path, save_every=40)
    cut.run(resume=True)
    assert cut.task.draws == whole.task.draws[5:]
    other = trainer(tmp_path / "other", seed=1000)
    other.run()
    assert not set(other.task.draws) & set(whole.task.draws)


# ---- the clock


def test_the_clock_cuts_a_run_short_and_the_rate_still_falls(tmp_path):
    run = trainer(
        tmp_path, images=10**6, seconds=0.01, max_minutes=0.3 / 60, schedule="linear", final_learning_rate=0.0
    )
    result = run.run()
    assert result["cut_short"] is True
    assert result["images"] < 10**6
    assert result["images"] % 8 == 0
    assert 0.3 <= result["seconds"] < 3
    rates = [row["learning_rate_matrices"] for row in read_log(tmp_path) if row["kind"] == "train"]
    assert rates[0] == pytest.approx(0.05)
    assert rates[-1] < 0.2 * 0.05
    assert all(b < a for a, b in itertools.pairwise(rates))
    assert run.progress.share == 1.0


def test_the_clock_of_a_run_cut_short_takes_nothing_from_the_peak(tmp_path):
    run = trainer(tmp_path, images=10**6, seconds=0.01, max_minutes=0.4 / 60, schedule="linear", warmup_images=64)
    run.run()
    rates = [row["learning_rate_matrices"] for row in read_log(tmp_path) if row["kind"] == "train"]
    assert rates[:8] == pytest.approx([0.05 * (i + 1) / 8 for i in range(8)])
    assert all(b < a for a, b in itertools.pairwise(rates[7:]))
    assert run.progress.decay_share == 1.0
    assert run.progress.decay_start > 0.1  # by the clock; of the pictures, next to nothing


def test_evaluation_does_not_count_as_training_time(tmp_path):
    run = trainer(tmp_path, images=32, evaluate_every=8)
    evaluate = run.task.evaluate

    def slow(model, accelerator):
        time.sleep(0.2)
        return evaluate(model, accelerator)

    run.task.evaluate = slow
    run.run()
    assert run.task.evaluations == 4
    assert run.progress.elapsed < 0.4


def test_the_last_batch_may_pass_the_number_of_pictures(tmp_path):
    result = trainer(tmp_path, images=20).run()
    assert result["images"] == 24
    assert result["cut_short"] is False


@pytest.mark.parametrize("number", [2, 3])
def test_a_signal_ends_an_evaluation_which_the_resumed_run_makes_up_for(tmp_path, number):
    settings = {"images": 64, "evaluate_every": 24, "log_every": 16, "save_every": 8 * 1000}
    trainer(tmp_path / "whole", **settings).run()
    stopped = trainer(tmp_path / "cut", **settings)
    stopped.task.interrupted_at = number  # at 24, 48 or, after the last step, 64 pictures
    with pytest.raises(RunInterrupted, match="stopped by SIGTERM; checkpoint saved in"):
        stopped.run()
    images = [row["images"] for row in read_log(tmp_path / "cut") if row["kind"] == "validation"]
    assert images == [24, 48, 64][: number - 1]
    trainer(tmp_path / "cut", **settings).run(resume=True)
    clock = ("seconds", "images_per_second")
    rows = [[{k: v for k, v in r.items() if k not in clock} for r in read_log(tmp_path / n)] for n in ("whole", "cut")]
    assert rows[0] == rows[1]


# ---- settings


def test_a_batch_that_does_not_divide_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"train.batch_size 8 must be a multiple of .* = 3"):
        trainer(tmp_path, gradient_accumulation_steps=3)


def test_settings_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"train.log_every must be an integer of at least 1"):
        trainer(tmp_path, log_every=0)


# ---- checkpoints


def test_the_last_checkpoints_are_kept(tmp_path):
    trainer(tmp_path, save_every=16, keep_checkpoints=2).run()
    assert [folder.name for folder in find_checkpoints(tmp_path)] == ["000000000064", "000000000080"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_folders_of_the_users_among_the_checkpoints_stay(tmp_path):
    mine = ["2024", "best.partial", "000000000016-best"]
    for name in mine:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    trainer(tmp_path, save_every=16, keep_checkpoints=2).run()
    kept = ["000000000064", "000000000080"]
    assert [folder.name for folder in find_checkpoints(tmp_path)] == kept
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted([*kept, *mine])


def test_no_checkpoints_unless_asked(tmp_path):
    trainer(tmp_path).run()
    assert find_checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match="holds no complete checkpoint to resume from"):
        trainer(tmp_path).run(resume=True)


def test_partial_checkpoints_are_ignored(tmp_path):
    trainer(tmp_path, save_every=40).run()
    latest = find_checkpoints(tmp_path)[-1]
    shutil.copytree(latest, latest.with_name("000000000088.partial"))
    (latest.parent / "notes.txt").write_text("mine")
    assert find_checkpoints(tmp_path)[-1] == latest
    again = trainer(tmp_path, images=96, save_every=8)
    again.load_latest()
    assert again.progress.images_seen == 80


def test_checkpoints_sort_by_number(tmp_path):
    for name in ("000000000900", "000000001000", "000000010000"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [folder.name for folder in find_checkpoints(tmp_path)] == ["000000000900", "000000001000", "000000010000"]


def test_resuming_a_finished_run_evaluates_it_again(tmp_path):
    first = trainer(tmp_path, save_every=40).run()
    again = trainer(tmp_path, save_every=40).run(resume=True)
    assert again["images"] == 80
    assert again["weight"] == first["weight"]
