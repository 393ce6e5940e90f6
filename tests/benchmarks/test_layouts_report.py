"""The report of the study of layouts."""

from benchmarks.generation_report import FD, KD
from benchmarks.layouts_report import plot, protocol, speed_table, table


def cell(layout, codes, passes, random_order=None):
    run = {"bits_per_image": 688.6} | ({"bits_per_image_in_random_order": random_order} if random_order else {})
    guidance = {scale: {FD: 500.0 - passes[0], KD: 0.5} for scale in ("1", "1.5")}
    return {
        "name": f"{layout}-sliced-seed0",
        "cell": {"layout": layout, "method": "sliced", "seed": 0},
        "tokenizer": {"codes": codes, "psnr_rgb": 25.781, "utilization": 0.5},
        "run": run,
        "num_samples": 2_000,
        "floor": {FD: 40.0, KD: -0.0001},
        "decoded": {FD: 300.0},
        "drawn": [{"passes": number, "guidance": guidance} for number in passes],
    }


CELLS = [cell("any_order", 64, [64, 8], 700.2), cell("multi_scale", 130, [6]), cell("grid", 64, [64])]


def test_a_row_for_each_number_of_passes_in_the_order_of_the_study():
    head, _, *lines = table(CELLS).splitlines()
    assert head.endswith("| passes | fd, s 1 | kd, s 1 | fd, s 1.5 | kd, s 1.5 |")
    assert lines == [
        "| sliced | 0 | grid | 64 | 50.0% | 25.78 | 689 | 300.0 | 64 | 436.0 | 0.5000 | 436.0 | 0.5000 |",
        "| sliced | 0 | multi scale | 130 | 50.0% | 25.78 | 689 | 300.0 | 6 | 494.0 | 0.5000 | 494.0 | 0.5000 |",
        "| sliced | 0 | any order | 64 | 50.0% | 25.78 | 689 (700) | 300.0 | 64 | 436.0 | 0.5000 | 436.0 | 0.5000 |",
        "| sliced | 0 | any order | 64 | 50.0% | 25.78 | 689 (700) | 300.0 | 8 | 436.0 | 0.5000 | 436.0 | 0.5000 |",
    ]


def test_the_protocol_names_the_floor():
    assert protocol(CELLS[0]) == "2,000 pictures on each side; real against real: fd 40.0, kd -0.0001"


def test_samplers_are_compared_batch_by_batch():
    timed = [
        {"layout": layout, "passes": passes, "batch": batch, "seconds_per_image": seconds / batch, "first_to_this": 1.5}
        for batch, seconds in ((16, 0.8), (1, 0.2))
        for layout, passes in (("grid", 64), ("multi_scale", 6))
    ]
    head, _, *lines = speed_table(timed).splitlines()
    assert head == (
        "| layout | passes | ms a picture, batch 1 | times as fast | ms a picture, batch 16 | times as fast |"
    )
    assert lines == [
        "| grid | 64 | 200.0 | 1.50 | 50.0 | 1.50 |",
        "| multi scale | 6 | 200.0 | 1.50 | 50.0 | 1.50 |",
    ]


def test_plot(tmp_path):
    plot(CELLS, tmp_path / "layouts.png")
    assert (tmp_path / "layouts.png").read_bytes().startswith(b"\x89PNG")
