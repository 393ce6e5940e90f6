"""A result's text and page hold every figure, floor, warning and setting, and never replace a file of another kind."""

import pytest

from wvq.errors import ConfigError
from wvq.eval.report.results import write_result
from wvq.eval.report.summary import (
    markdown,
    metric_rows,
    refuse_foreign_files,
    setting_rows,
    summary_files,
    write_summary,
)


def test_floors_stand_beside_figures_of_their_n_only(result):
    assert metric_rows(result) == [
        ("fid", 5.5, None, 10),
        ("kid", 0.25, None, 10),
        ("fid_at_floor_n", 7.0, 1.25, 5),
    ]
    assert metric_rows(result | {"num_floor": 10})[0] == ("fid", 5.5, 1.25, 10)


def test_figures_of_several_scales_stand_in_one_row(result, tmp_path):
    result["metrics"] |= {"utilization_per_scale": [0.0625, 0.5], "num_tokens_per_scale": [6, 2400]}
    assert metric_rows(result)[-2:] == [
        ("utilization_per_scale", "0.0625, 0.5", None, 10),
        ("num_tokens_per_scale", "6, 2,400", None, 10),
    ]
    assert "| utilization_per_scale | 0.0625, 0.5 |  | 10 |" in markdown(result)
    write_summary(tmp_path / "result.json", result, [])
    page = (tmp_path / "result.html").read_text()
    assert page.count("utilization_per_scale") == 1  # in the table, and no card


def test_settings_are_flat_and_whole(result):
    rows = dict(setting_rows(result))
    assert rows["reference.kind"] == "train"
    assert rows["seed"] == "3"
    assert "versions.torch" in rows
    assert "prompts" not in rows


def test_the_text_says_all(result):
    text = markdown(result)
    for part in (
        "| fid | 5.5000 |  | 10 |",
        "| fid_at_floor_n | 7.0000 | 1.2500 | 5 |",
        "Warning: few pictures.",
        "a\\|b",
    ):
        assert part in text


def test_a_former_result_is_replaced_and_nothing_else(result, tmp_path):
    file = tmp_path / "fid.json"
    refuse_foreign_files(file)
    write_result(file, result)
    write_summary(file, result, [])
    written = summary_files(file)
    refuse_foreign_files(file)
    for path, text in ((file, '{"metrics": 3}'), (written[0], "# Notes"), (written[1], "<title>Home</title>")):
        before = path.read_text()
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"^out: .*{path.name} .*would be written over.*choose another name$"):
            refuse_foreign_files(file)
        path.write_text(before)
