"""The study of layouts: every layout, with tokenizers of the study's own size and tiny generators, for a few steps."""

import math

import pytest

from benchmarks.cells import run_cells
from benchmarks.generation import Measure, code_folder, data_config
from benchmarks.layouts import CELLS, Budget, Study, in_turn
from tests.stand_ins import ProjectionNetwork
from wvq.data.codes import CodeDataset
from wvq.data.dataset import load_images
from wvq.errors import DataError
from wvq.files.atomic import read_json
from wvq.pipelines.image_generation import ImageGenerationPipeline

STEPS = {"images": 32, "batch_size": 16, "warmup_images": 0, "log_every": 32, "evaluate_every": 32, "save_every": 32}
SIZES = {"model.hidden_size": 32, "model.num_layers": 1, "model.num_heads": 2}
TINY = Budget(STEPS, SIZES | {f"train.{name}": value for name, value in STEPS.items()}, num_samples=12)
PASSES = {"grid": [64], "multi_scale": [6], "product": [64], "any_order": [64, 8, 16, 32]}


@pytest.fixture(scope="module")
def study(picture_folder, tmp_path_factory):
    return Study(str(picture_folder), tmp_path_factory.mktemp("study"), TINY)


@pytest.fixture(scope="module")
def measure(study):
    return Measure(load_images(data_config(study.data)).train, ProjectionNetwork(), TINY.num_samples)


@pytest.fixture(scope="module")
def finished(study, measure):
    """A function that runs the cell of a layout, unless it is finished, and returns its figures."""

    def run(layout: str) -> dict:
        name = f"{layout}-sliced-seed0"
        run_cells([name], study.out, lambda name, out: study.run(CELLS[name], out, measure))
        cells = read_json(study.out / "results.json", DataError, "no results")["cells"]
        return next(cell for cell in cells if cell["name"] == name)

    return run


@pytest.mark.parametrize("layout", PASSES)
def test_a_cell_has_the_figures_of_its_pipeline(study, finished, layout):
    result, cell = finished(layout), CELLS[f"{layout}-sliced-seed0"]
    pipe = ImageGenerationPipeline.from_pretrained(study.out / "cells" / cell.name)
    held_out = CodeDataset(code_folder(study.tokenizer(cell), study.data), "validation")
    batch = held_out.batch(range(len(held_out)))
    bits = -pipe.log_likelihood(batch["codes"], batch["label"].tolist()).mean() / math.log(2)
    assert result["run"]["bits_per_image"] == pytest.approx(float(bits), rel=1e-3)
    assert ("bits_per_image_in_random_order" in result["run"]) == (layout == "any_order")
    assert result["cell"] == {"layout": layout, "method": "sliced", "seed": 0}
    assert result["tokenizer"]["codes"] == pipe.generator.config.sequence_length
    assert [draw["passes"] for draw in result["drawn"]] == PASSES[layout]
    for draw in result["drawn"]:
        assert list(draw["guidance"]) == ["1", "1.5"]
        assert all(math.isfinite(value) for figures in draw["guidance"].values() for value in figures.values())


def test_samplers_of_finished_cells_are_timed_against_the_first(study, finished):
    finished("multi_scale")
    finished("grid")
    rows = study.speed(rounds=1, batches=(2,))
    assert [row["layout"] for row in rows][:2] == ["grid", "multi_scale"]
    assert all(row["seconds_per_image"] > 0 for row in rows)
    assert rows[0]["first_to_this"] == 1


def test_cells_of_one_layout_of_codes_share_their_tokenizer():
    sources = {cell.name: cell.tokenizer_name for cell in CELLS.values()}
    assert len(sources) == 16
    assert len(set(sources.values())) == 12
    assert sources["any_order-vanilla-seed0"] == sources["grid-vanilla-seed0"]


def test_cases_are_timed_in_turn():
    calls = []
    times = in_turn([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert calls == ["a", "b"] * 3  # the first round does not count
    assert [len(own) for own in times] == [2, 2]
