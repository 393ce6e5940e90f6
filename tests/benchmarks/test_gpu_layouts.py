"""The part of the run on a GPU that times each layout of codes: its tiny form, and a run without time."""

from benchmarks.gpu_layouts import BATCHES, CASES, layouts


def test_each_layout_has_a_row():
    rows = list(layouts("cpu", True, 3_600.0))
    assert [row["layout"] for row in rows] == [case.name for case in CASES]
    assert not [row for row in rows if "failed" in row]
    assert all(row["ms"] > 0 and row["pictures_a_second"] > 0 for row in rows)


def test_without_time_each_row_says_so():
    rows = list(layouts("cpu", False, 0.0))
    assert len(rows) == len(CASES) * len(BATCHES)
    assert {row["failed"] for row in rows} == {"no time was left"}
