"""Evaluations by recipe, from Python: presets, sweeps, default counts, files and working folders as in the shell."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.stand_ins import ProjectionNetwork
from tests.tiny import make_layout_pipeline, make_pipeline
from wvq.app.describe import describe
from wvq.errors import CheckpointError, ConfigError
from wvq.eval import run
from wvq.eval.presets import PRESETS, Preset
from wvq.eval.real.archive import write_archive
from wvq.eval.recipes import GenerationEvaluation, ReconstructionEvaluation
from wvq.eval.run import run_generation_evaluation, run_reconstruction_evaluation
from wvq.files.names import FINGERPRINT_NAME


@pytest.fixture(scope="module")
def pipeline_dir(tiny_tokenizer_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes") / "pipeline"
    make_pipeline(tiny_tokenizer_dir).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _fast_network(monkeypatch):
    monkeypatch.setattr(run, "default_feature_network", lambda *_: ProjectionNetwork())
    monkeypatch.setattr(run, "load_feature_network", lambda *_, **__: ProjectionNetwork())


@pytest.fixture
def recipe(pipeline_dir, picture_folder, tiny_data, tmp_path):
    data = tiny_data(picture_folder)
    return GenerationEvaluation(pipeline=pipeline_dir, data=data, num_images=6, out=str(tmp_path / "r.json"))


def test_a_result_is_written_with_its_text_and_page_and_nothing_else(recipe, tmp_path, capsys):
    result = run_generation_evaluation(recipe, progress=False)
    size = result["settings"]["reference"]["image_size"]
    assert f"read at the size of the samples, {size} px" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json", "r.md"]
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(result))
    assert result["settings"]["pipeline"] == recipe.pipeline
    assert result["settings"]["data"] == recipe.data.path
    again = run_generation_evaluation(replace(recipe, out=None), progress=False)
    assert again["metrics"] == result["metrics"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_sweep_is_measured_step_by_step_under_one_recipe(recipe):
    recipe = replace(recipe, sampling={"top_k": 5}, sweep="temperature=0.5:1:0.5", out=None)
    result = run_generation_evaluation(recipe, progress=False)
    rows = result["sweep"]["rows"]
    assert [row.pop("temperature") for row in rows] == [0.5, 1.0]
    alone = run_generation_evaluation(
        replace(recipe, sampling={"top_k": 5, "temperature": 0.5}, sweep=None), progress=False
    )
    assert rows[0] == alone["metrics"]
    assert rows[0] != rows[1]


def test_working_folders_of_a_sweep_go_when_the_result_is_kept(recipe, tmp_path, monkeypatch):
    recipe = replace(recipe, sweep="top_k=3:5:2")
    with monkeypatch.context() as patched:
        patched.setattr(run, "write_result", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            run_generation_evaluation(recipe, progress=False)
    folders = {path.name for path in tmp_path.iterdir()}
    assert folders == {"r.json.partial", "r.json.top_k-3.partial", "r.json.top_k-5.partial"}
    run_generation_evaluation(recipe, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json", "r.md"]


@pytest.fixture
def scale_recipe(recipe, tmp_path_factory):
    """The recipe over a pipeline that draws scale by scale."""
    folder = tmp_path_factory.mktemp("scales") / "pipeline"
    make_layout_pipeline("multi-scale").save_pretrained(folder)
    return replace(recipe, pipeline=str(folder))


def test_a_pipeline_that_draws_scale_by_scale_is_measured_as_any(scale_recipe):
    rising = {"guidance_schedule": "linear"}
    result = run_generation_evaluation(
        replace(scale_recipe, sweep="guidance_scale=1:3:2", sampling=rising), progress=False
    )
    assert (result["num_images"], result["settings"]["classes"]) == (6, "balanced")
    free, guided = result["sweep"]["rows"]
    assert free["fd_projection"] != guided["fd_projection"]
    alone = replace(scale_recipe, sampling=rising | {"guidance_scale": 3}, out=None, batch_size=4)
    again = run_generation_evaluation(alone, progress=False)["metrics"]
    assert again == pytest.approx({name: value for name, value in guided.items() if name != "guidance_scale"}, rel=1e-4)


@pytest.mark.parametrize("fields", [{"sampling": {"window": 4}}, {"sweep": "window=0:4:2"}])
def test_what_a_generator_cannot_follow_is_refused_before_pictures_are_read(fields, scale_recipe, monkeypatch):
    monkeypatch.setattr(run, "open_images", lambda *_: pytest.fail("pictures were read"))
    with pytest.raises(ConfigError, match="window is for generators of one code a pass; this one draws a scale a pass"):
        run_generation_evaluation(replace(scale_recipe, **fields), progress=False)


def test_a_preset_fixes_the_protocol_and_the_result_names_the_published_figure(recipe, pictures, tmp_path, monkeypatch):
    preset = Preset({"guidance_scale": 2.0, "top_k": 4}, {"fid": 3.5}, num_images=6, image_size=16)
    monkeypatch.setitem(PRESETS, "small", preset)
    write_archive(tmp_path / "real.npz", [pictures(12)], 12)
    recipe = replace(recipe, num_images=None, preset="small", reference=str(tmp_path / "real.npz"), out=None)
    result = run_generation_evaluation(recipe, progress=False)
    settings = result["settings"]
    assert (settings["guidance_scale"], settings["top_k"], settings["classes"]) == (2.0, 4, "balanced")
    assert (settings["preset"], settings["published"]) == ("small", {"fid": 3.5})
    assert (result["num_images"], settings["reference"]["file"]) == (6, "real.npz")
    monkeypatch.setitem(PRESETS, "large", replace(preset, image_size=256))
    with pytest.raises(ConfigError, match="preset large is for 256 px; this pipeline draws 16 px"):
        run_generation_evaluation(replace(recipe, preset="large"), progress=False)
    monkeypatch.setitem(PRESETS, "scales", replace(preset, layout="multi-scale"))
    with pytest.raises(ConfigError, match="preset scales is for multi-scale codes; this pipeline draws grid codes"):
        run_generation_evaluation(replace(recipe, preset="scales"), progress=False)


@pytest.mark.parametrize(
    ("fields", "num_classes", "expected"),
    [
        ({"num_images": 7}, 3, 7),
        ({}, 3, 999),
        ({}, 0, 1000),
        ({}, 1500, 1500),
        ({"classes": "balanced"}, 7, 994),
        ({"classes": "reference"}, 3, 1000),
        ({"classes": "none"}, 3, 1000),
        ({"prompts": "reference"}, 3, 1000),
    ],
)
def test_the_number_of_samples_balances_the_classes(fields, num_classes, expected):
    assert run._num_images(GenerationEvaluation(pipeline="p", **fields), num_classes) == expected


def test_a_tokenizer_is_measured_on_its_held_out_pictures(tiny_tokenizer_dir, picture_folder, tiny_data, tmp_path):
    recipe = ReconstructionEvaluation(
        tokenizer=str(tiny_tokenizer_dir), data=tiny_data(picture_folder), out=str(tmp_path / "r.json")
    )
    result = run_reconstruction_evaluation(recipe, progress=False)
    assert (result["kind"], result["num_images"]) == ("reconstruction", 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json", "r.md"]
    forced = replace(recipe, reference_kind="train", force_reference=True, out=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_reconstruction_evaluation(forced, progress=False)["num_images"] == 48


def test_messages_on_lpips_name_its_option(tiny_tokenizer_dir, picture_folder, tiny_data):
    pytest.importorskip("lpips", reason="the package lpips is missing")
    recipe = ReconstructionEvaluation(
        tokenizer=str(tiny_tokenizer_dir), data=tiny_data(picture_folder), lpips="nowhere.pth"
    )
    with pytest.raises(CheckpointError, match=r"^--lpips: nowhere.pth does not exist$"):
        run_reconstruction_evaluation(recipe, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 7}, "num_images=7 cannot be balanced over 3 classes; use 6 or 9"),
        ({"classes": "reference", "prompts": "reference"}, "prompts: this pipeline is not conditional on text"),
    ],
)
def test_conditions_that_the_pipeline_does_not_have_are_refused_before_weights_are_loaded(
    recipe, pipeline_dir, changes, message, tmp_path
):
    shutil.copytree(pipeline_dir, tmp_path / "p", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match=message):
        run_generation_evaluation(replace(recipe, pipeline=str(tmp_path / "p"), **changes))


def test_a_place_for_the_result_that_is_taken_is_refused_before_anything_is_loaded(recipe, tmp_path):
    recipe = replace(recipe, pipeline="nowhere")
    with pytest.raises(ConfigError, match="is a folder; name a JSON file"):
        run_generation_evaluation(replace(recipe, out=str(tmp_path)))
    np.savetxt(tmp_path / "r.md", [1.0])
    with pytest.raises(ConfigError, match="would be written over"):
        run_generation_evaluation(recipe)


# ---- what the models were trained on


@pytest.fixture
def pipeline_of_pictures(pipeline_dir, tmp_path):
    """A copy of the pipeline whose generator was trained on the pictures of its tokenizer."""
    shutil.copytree(pipeline_dir, tmp_path / "p")
    shutil.copy(tmp_path / "p" / "tokenizer" / FINGERPRINT_NAME, tmp_path / "p" / "generator")
    return str(tmp_path / "p")


def test_a_result_names_the_pictures_and_those_of_the_models(recipe, pipeline_of_pictures):
    result = run_generation_evaluation(replace(recipe, pipeline=pipeline_of_pictures), progress=False)
    known = result["settings"]["data_fingerprint"]
    assert list(known) == ["data", "generator", "tokenizer"]
    assert known["data"] == known["generator"] == known["tokenizer"]
    assert known["data"]["training"].startswith("48 pictures (")
    assert not any("trained on" in line for line in result["warnings"])
    assert describe(recipe.out).count("training 48 pictures") == 3


def test_samples_are_compared_with_the_training_pictures_of_their_generator(recipe, pipeline_of_pictures, tiny_data):
    data = tiny_data(recipe.data.path, classes=["circle"])
    changed = replace(recipe, pipeline=pipeline_of_pictures, data=data, classes="none")
    result = run_generation_evaluation(changed, progress=False)
    line = f"{pipeline_of_pictures} was trained on other pictures: 0 of 16 training pictures are new, 32 are gone"
    assert line in result["warnings"]


@pytest.mark.parametrize("part", ["generator", "tokenizer"])
def test_samples_are_not_compared_with_held_out_pictures_that_a_part_was_trained_on(
    part, recipe, pipeline_of_pictures, tiny_data
):
    for name in {"generator", "tokenizer"} - {part}:
        (Path(pipeline_of_pictures) / name / FINGERPRINT_NAME).unlink()
    recipe = replace(recipe, pipeline=pipeline_of_pictures, reference_kind="validation", force_reference=True)
    run_generation_evaluation(recipe, progress=False)
    otherwise = replace(recipe, data=tiny_data(recipe.data.path, seed=1), overwrite=True)
    with pytest.raises(ConfigError, match=r"p.* was trained on \d+ of these 12 held-out pictures \(the same pictures"):
        run_generation_evaluation(otherwise, progress=False)


def test_a_tokenizer_is_not_measured_on_pictures_that_it_was_trained_on(
    tiny_tokenizer_dir, picture_folder, tiny_data, tmp_path
):
    otherwise = tiny_data(picture_folder, seed=1)
    recipe = ReconstructionEvaluation(tokenizer=str(tiny_tokenizer_dir), data=otherwise, out=str(tmp_path / "r.json"))
    refusal = r"was trained on \d+ of these 12 held-out pictures \(the same pictures, held out otherwise\): set "
    with pytest.raises(ConfigError, match=f"{refusal}--data.seed 0, or accept it with --data.ignore_mixed_split true$"):
        run_reconstruction_evaluation(recipe, progress=False)
    assert list(tmp_path.iterdir()) == []
    accepted = replace(recipe, data=replace(otherwise, ignore_mixed_split=True))
    result = run_reconstruction_evaluation(accepted, progress=False)
    assert any(line.startswith(f"{tiny_tokenizer_dir} was trained on ") for line in result["warnings"])
    forced = replace(recipe, reference_kind="train", force_reference=True, out=None)
    result = run_reconstruction_evaluation(forced, progress=False)
    assert any("training pictures are new" in line for line in result["warnings"])


def test_a_tokenizer_of_an_earlier_version_is_compared_by_its_recipe(
    tiny_tokenizer_dir, picture_folder, tiny_data, tmp_path
):
    shutil.copytree(tiny_tokenizer_dir, tmp_path / "t", ignore=shutil.ignore_patterns("training", FINGERPRINT_NAME))
    recipe = ReconstructionEvaluation(tokenizer=str(tmp_path / "t"), data=tiny_data(picture_folder, seed=1))
    result = run_reconstruction_evaluation(recipe, progress=False)
    assert any("was trained with data.seed 0 and here it is 1" in line for line in result["warnings"])
    assert list(result["settings"]["data_fingerprint"]) == ["data"]
