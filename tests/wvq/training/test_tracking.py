"""The run log: rows in JSONL and TensorBoard, crash-proof reading, truncation on resume."""

from PIL import Image

from wvq.training.tracking import LOG_NAME, RunLog, read_log, truncate_log


def test_rows_come_back_as_written(tmp_path):
    log = RunLog(tmp_path)
    log.row("train", 32, {"loss": 1.5, "note": "text"})
    log.row("validation", 32, {"loss": 2.5})
    log.close()
    assert read_log(tmp_path) == [
        {"kind": "train", "images": 32, "loss": 1.5, "note": "text"},
        {"kind": "validation", "images": 32, "loss": 2.5},
    ]


def test_figures_and_pictures_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    log.row("train", 64, {"loss": 0.25})
    log.picture("held_out", 64, Image.new("RGB", (4, 4), "red"))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(64, 0.25)]
    assert [event.step for event in events.Images("held_out")] == [64]
    with Image.open(tmp_path / "pictures" / "000000064.png") as picture:
        assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_a_last_line_cut_short_is_left_out(tmp_path):
    (tmp_path / LOG_NAME).write_text('{"kind": "train", "images": 1}\n{"kind": "tra')
    assert read_log(tmp_path) == [{"kind": "train", "images": 1}]


def test_no_log_is_no_rows(tmp_path):
    assert read_log(tmp_path) == []


def test_truncation_keeps_the_rows_up_to_the_checkpoint(tmp_path):
    (tmp_path / LOG_NAME).write_text("".join(f'{{"kind": "train", "images": {i}}}\n' for i in (8, 16, 24)))
    truncate_log(tmp_path, 16)
    assert [row["images"] for row in read_log(tmp_path)] == [8, 16]
