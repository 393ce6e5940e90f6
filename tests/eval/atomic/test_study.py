"""Many cells of the atomic study: which they are, a folder that fills once, the table, the plots, the command."""

import json
import math
import shutil
from dataclasses import asdict

import pytest
from PIL import Image

from wvq.app.cli import main
from wvq.errors import ConfigError, DataError
from wvq.eval.atomic import study as atomic_study
from wvq.eval.atomic.cell import AtomicCell
from wvq.eval.atomic.plots import plot_study
from wvq.eval.atomic.study import PRESETS, expand, published_figures, report_study, run_study, study_table
from wvq.eval.recipes import AtomicRecipe

TINY = {"num_codes": 16, "code_dim": 2, "num_features": 64, "steps": 4, "evaluation_features": 200}


def recipe(out="unused", **changes):
    return AtomicRecipe(**{"out": str(out), "progress": False} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished study of eight cells, and its results."""
    folder = tmp_path_factory.mktemp("study") / "atomic"
    results = run_study(recipe(folder, quantizers=["sliced", "ema"], shifts=[0.0, 1.0, 2.0, 3.0], **TINY))
    return folder, results


@pytest.fixture
def study(finished, tmp_path):
    """A copy of the finished folder."""
    return shutil.copytree(finished[0], tmp_path / "atomic")


def test_a_folder_that_holds_other_things_is_refused(tmp_path):
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(ConfigError, match="already holds files; choose another output folder"):
        run_study(recipe(tmp_path, **TINY))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("table.md", "mine")]


# ---- cells


def test_a_recipe_without_axes_is_the_default_cell():
    assert expand(recipe()) == [AtomicCell()]


def test_axes_are_multiplied_and_sizes_are_shared():
    cells = expand(
        recipe(quantizers=["mmd", "sliced"], shifts=[0.0, 2.0, 5.0], target_scales=[0.5, 1.0], seed=4, **TINY)
    )
    assert len(set(cells)) == len(cells) == 2 * 3 * 2
    assert {(cell.quantizer, cell.shift, cell.target_scale) for cell in cells} == {
        (quantizer, shift, scale) for quantizer in ("mmd", "sliced") for shift in (0, 2, 5) for scale in (0.5, 1)
    }
    assert all({name: getattr(cell, name) for name in TINY} == TINY and cell.seed == 4 for cell in cells)


def test_equal_values_give_one_cell():
    assert len(expand(recipe(shifts=[1.0, 1.0, 2.0]))) == 2


@pytest.mark.parametrize(
    ("preset", "count"),
    [("paper", 42), ("bimodal", 9), ("shifts", 18), ("kmeans", 4), ("affine", 7), ("theory", 42), ("sweeps", 26)],
)
def test_presets_have_their_cells_each_under_a_name_of_its_own(preset, count):
    cells = expand(recipe(preset=preset))
    assert len(cells) == count
    assert len({cell.name for cell in cells}) == count


def test_every_preset_is_among_those_of_the_test_above():
    assert set(PRESETS) == {"paper", "bimodal", "shifts", "kmeans", "affine", "theory", "sweeps"}


def test_the_paper_preset_covers_every_published_figure():
    cells = {(cell.distribution, cell.quantizer, cell.shift) for cell in expand(recipe(preset="paper"))}
    assert set(published_figures()) < cells


def test_axes_choose_among_the_cells_of_a_preset():
    cells = expand(recipe(preset="paper", quantizers=["sliced", "ema"], shifts=[2.0, 5.0]))
    assert {(cell.distribution, cell.quantizer, cell.shift) for cell in cells} == {
        *(("gaussian", quantizer, 5) for quantizer in ("sliced", "ema")),
        *(("uniform", quantizer, shift) for quantizer in ("sliced", "ema") for shift in (2, 5)),
    }
    assert all(cell.steps == 2000 for cell in cells)


def test_an_axis_that_a_preset_lacks_and_sizes_are_added():
    assert all(cell.steps == 10_000 for cell in expand(recipe(preset="bimodal")))
    cells = expand(recipe(preset="bimodal", target_scales=[0.5, 0.9], steps=7))
    assert len(cells) == 2 * 9
    assert all(cell.steps == 7 and cell.target_scale in (0.5, 0.9) for cell in cells)


def test_a_preset_narrowed_to_nothing_is_an_error():
    with pytest.raises(ConfigError, match='no cell of preset "paper"'):
        expand(recipe(preset="paper", shifts=[7.0]))


def test_an_unknown_preset_has_a_near_match():
    with pytest.raises(ConfigError, match=r'preset "papr" is unknown \(did you mean "paper"\?\)'):
        expand(recipe(preset="papr"))


@pytest.mark.parametrize(
    "axis", ["quantizers", "distributions", "shifts", "separations", "target_scales", "code_scales"]
)
def test_an_empty_axis_is_an_error_that_names_it(axis):
    with pytest.raises(ConfigError, match=f"^{axis} must be a list of one or more (names|numbers), or null"):
        expand(recipe(**{axis: []}))


def test_a_bad_cell_is_found_before_any_runs(tmp_path):
    with pytest.raises(ConfigError, match="target_scale"):
        run_study(recipe(tmp_path / "out", target_scales=[1.0, -1.0], **TINY))
    assert not (tmp_path / "out").exists()


# ---- the folder


def test_a_study_writes_results_a_table_and_plots(finished):
    folder, results = finished
    cells = [json.loads(file.read_text()) for file in sorted((folder / "cells").iterdir())]
    assert cells == results
    assert len(cells) == 8
    assert all(set(cell["software"]) >= {"wvq", "torch", "python"} for cell in cells)
    assert AtomicCell(**cells[0]["cell"]).name + ".json" in {file.name for file in (folder / "cells").iterdir()}
    assert (folder / "table.md").read_text() == study_table(results)
    pictures = sorted(file.name for file in folder.glob("*.png"))
    assert len([name for name in pictures if name.startswith("curves-gaussian")]) == 4
    assert [name for name in pictures if not name.startswith("curves-")] == [
        "over-shift-gaussian-num_codes16-code_dim2.png"
    ]
    with Image.open(folder / pictures[-1]) as picture:
        assert min(picture.size) > 200
    assert {file.suffix for file in folder.iterdir()} == {"", ".json", ".md", ".png"}
    listed = json.loads((folder / "results.json").read_text())
    assert [cell["result"] for cell in listed] == [cell["result"] for cell in results]
    assert not any("curve" in cell for cell in listed)


def test_a_cell_of_another_protocol_is_run_again(tmp_path):
    changes = {"quantizers": ["ema"], "shifts": [2.0], **TINY}
    (first,) = run_study(recipe(tmp_path, **changes))
    file = tmp_path / "cells" / f"{AtomicCell(**first['cell']).name}.json"
    file.write_text(json.dumps(first | {"protocol": first["protocol"] | {"decay": 0.5}, "result": {}}))
    (again,) = run_study(recipe(tmp_path, **changes))
    assert again["protocol"] == first["protocol"]
    assert again["result"] == first["result"]


def test_cells_that_the_folder_holds_are_not_run_again(study, finished, monkeypatch):
    monkeypatch.setattr(atomic_study, "run_cell", lambda *_: pytest.fail("a cell was run again"))
    (study / "table.md").unlink()
    changes = {"quantizers": ["ema"], "shifts": [2.0], **TINY}
    assert run_study(recipe(study, **changes)) == finished[1]
    assert (study / "table.md").exists()


def test_a_stopped_study_goes_on_with_the_cells_that_are_missing(study, monkeypatch):
    missing = sorted((study / "cells").iterdir())[3]
    content = json.loads(missing.read_text())
    missing.unlink()
    ran, run_cell = [], atomic_study.run_cell

    def record(cell, progress):
        ran.append(cell.name)
        return run_cell(cell, progress)

    monkeypatch.setattr(atomic_study, "run_cell", record)
    run_study(recipe(study, quantizers=["sliced", "ema"], shifts=[0.0, 1.0, 2.0, 3.0], **TINY))
    assert ran == [missing.stem]
    assert json.loads(missing.read_text())["result"] == content["result"]


@pytest.mark.parametrize("content", ['{"cell": {', "", "[1, 2]"])
@pytest.mark.parametrize("again", [run_study, lambda values: report_study(values.out)])
def test_a_broken_result_is_an_error_that_names_the_file(study, content, again):
    broken = sorted((study / "cells").iterdir())[0]
    broken.write_text(content)
    with pytest.raises(DataError, match=broken.name):
        again(recipe(study, quantizers=["sliced", "ema"], shifts=[0.0], **TINY))


def test_a_file_that_is_no_result_is_an_error(study):
    (study / "cells" / "other.json").write_text('{"loss": 1}')
    with pytest.raises(DataError, match="cells holds a file that is no result"):
        report_study(study)


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no results of a study"):
        report_study(tmp_path)


# ---- the table


def made(**changes):
    figures = {"quantization_error": 1.5, "utilization": 0.25, "perplexity": 2000.4, "wasserstein_distance": 0.5}
    return {"cell": asdict(AtomicCell(**changes)), "result": figures, "curve": []}


def rows(results):
    lines = study_table(results).splitlines()
    titles, _, *body = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return [dict(zip(titles, row, strict=True)) for row in body]


def test_published_figures_are_those_of_35_cells():
    published = published_figures()
    assert len(published) == 35
    assert all({"quantization_error", "utilization"} <= set(figures) for figures in published.values())
    assert all(0 < figures["utilization"] <= 1 for figures in published.values())
    assert published["gaussian", "wasserstein", 5.0]["quantization_error"] == 1.04234


def test_the_table_shows_the_figures_of_each_cell():
    (row,) = rows([made(quantizer="sliced", shift=2.0, num_codes=1024)])
    assert row == {
        "distribution": "gaussian", "quantizer": "sliced", "shift": "2", "K": "1,024", "D": "8", "N": "50,000",
        "steps": "2,000", "E": "1.5000", "U %": "25.00", "C": "2,000", "W": "0.5000",
    }  # fmt: skip
    (row,) = rows([made(quantizer="fixed", num_codes=1024)])
    assert row["N"] == row["steps"] == "none"


def test_published_figures_stand_beside_the_cells_of_their_setting_only():
    setting = {"quantizer": "wasserstein", "shift": 5.0}
    others = [{"num_codes": 1024}, {"code_dim": 4}, {"code_scale": 2.0}, {"target_scale": 0.5}, {"shift": 4.0}]
    found = rows([made(**setting), made(quantizer="sliced", shift=5.0), *(made(**setting | other) for other in others)])
    beside = [row for row in found if row["published E"]]
    assert len(found) == 7
    assert len(beside) == 1
    assert (beside[0]["K"], beside[0]["D"], beside[0]["quantizer"]) == ("16,384", "8", "wasserstein")
    assert beside[0]["published E"] == "1.0423"
    assert beside[0]["published U %"] == "99.85"
    assert beside[0]["published C"] == "14,404"
    assert beside[0]["published W"] == "0.0186"
    assert all("published E" not in row for row in rows([made(quantizer="sliced")]))


# ---- the command


@pytest.fixture
def fails(capsys, tmp_path, monkeypatch):
    """A function that runs a command, asserts exit code 2 and one line on stderr, and returns that line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["study", *arguments])
        captured = capsys.readouterr()
        assert caught.value.code == 2
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert ": error: " in line
        assert not (tmp_path / "runs").exists()
        return line

    return run


def test_the_command_runs_a_cell_and_prints_the_table(tmp_path, capsys):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--quantizers", "[ema]", "--shifts", "[0.5]", "--progress=false", *sizes]
    assert main(["study", "atomic", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| distribution | quantizer | shift |")
    assert "| gaussian | ema | 0.5 | 16 | 2 | 64 | 4 |" in printed
    assert str(out) in printed
    assert (out / "table.md").read_text() in printed


def test_the_command_needs_the_name_of_a_study(fails):
    assert 'study needs "atomic", got ""' in fails()
    assert 'study needs "atomic", got "foo"' in fails("foo")


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--quantizers", "[slicd]", """(did you mean "sliced"?), got 'slicd'"""),
        ("--quantizers", "[]", "quantizers must be a list of one or more names"),
        ("--num_codes", "0", "num_codes must be"),
        ("--steps", "many", "steps"),
        ("--shifts", "[a]", "shifts"),
        ("--code_scales", "[-1]", "code_scale must be"),
        ("--preset", "papers", 'preset "papers" is unknown (did you mean "paper"?)'),
        ("--quantizer", "sliced", "quantizer"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_field(fails, option, value, named):
    assert named in fails("atomic", option, value)


def result_of(seed=0, error=1.0):
    row = {"quantization_error": error, "utilization": 0.5, "perplexity": 3.0, "wasserstein_distance": 0.1}
    return {"cell": asdict(AtomicCell(seed=seed)), "result": row, "curve": [row | {"step": 0}] * 20}


def test_seeds_are_drawn_apart():
    assert set(plot_study([result_of(0), result_of(1)])) == {"curves-gaussian", "curves-gaussian-seed1"}


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_a_diverged_run_is_drawn(error):
    diverged, settled = result_of(error=error), result_of(error=2.0)
    low, high = plot_study([diverged, settled])["curves-gaussian"].axes[0].get_ylim()
    assert low < 2.0 < high < 3.0
