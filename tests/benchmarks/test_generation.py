"""The study of codebooks: a cell over a tokenizer that is there already, for a few steps."""

import math
from dataclasses import replace

import pytest

from benchmarks.generation import Cell, Measure, compared_tokenizer, data_config, run_cell, tokenizer_folder
from benchmarks.generation_report import label
from tests.stand_ins import ProjectionNetwork
from wvq.data.dataset import load_images

STEPS = {"images": 32, "batch_size": 16, "warmup_images": 0, "log_every": 32, "evaluate_every": 32, "save_every": 32}
TINY = {"model.hidden_size": 32, "model.num_layers": 1, "model.num_heads": 2}


def test_a_cell_is_measured_over_the_tokenizer_of_its_method(picture_folder, tmp_path):
    changes = {**TINY, **{f"train.{name}": value for name, value in STEPS.items()}, "objective.random_order": 1.0}
    cell = Cell("sliced", 1_024, changes)
    short = replace(compared_tokenizer(cell), train=STEPS)
    made = tokenizer_folder(short, str(picture_folder), tmp_path / "tokenizers")
    assert made.name == "sliced-1024-seed0"
    assert tokenizer_folder(compared_tokenizer(cell), str(picture_folder), tmp_path / "tokenizers") == made
    measure = Measure(load_images(data_config(str(picture_folder))).train, ProjectionNetwork(), 12)
    result = run_cell(cell, str(picture_folder), tmp_path / "cell", tmp_path / "tokenizers", measure)
    assert result["num_samples"] == 12
    assert result["run"]["bits_per_image"] == pytest.approx(64 * result["run"]["loss"] / math.log(2))
    assert list(result["guidance"]) == ["1", "1.5"]
    assert result["guidance"]["1"].keys() == result["decoded"].keys() == result["floor"].keys()
    assert label(result) == "sliced: random order first"
