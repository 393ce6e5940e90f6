"""Output folders and files: whole or not at all, and a run never writes over another."""

import json
from dataclasses import dataclass, field

import pytest
import yaml

from wvq.errors import ConfigError
from wvq.outputs import (
    recipe_of_run,
    refuse_data_folder,
    refuse_occupied,
    start_stage,
    whole_folder,
    write_json,
    write_text,
)
from wvq.recipes import DataConfig, GeneratorRecipe, TokenizerRecipe
from wvq.settings import ConditionConfig, TrainConfig


def test_text_files_appear_whole(tmp_path):
    file = tmp_path / "deeper" / "note.txt"
    write_text(file, "first")
    write_text(file, "zweite Fassung, größer")
    assert file.read_text(encoding="utf-8") == "zweite Fassung, größer"
    assert [path.name for path in file.parent.iterdir()] == ["note.txt"]


def test_json_files_keep_their_old_text_if_a_value_cannot_be_written(tmp_path):
    write_json(tmp_path / "a.json", {"name": "größer", "values": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "größer", "values": [1, 2.5, None]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["name"] == "größer"


def test_a_whole_folder_takes_its_name_at_the_end(tmp_path):
    target = tmp_path / "deeper" / "codes"
    with whole_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["codes"]


def test_a_whole_folder_replaces_an_empty_one_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as folder:
        (folder / "a.txt").write_text("new")
    assert (tmp_path / "empty" / "a.txt").exists()
    with pytest.raises(OSError), whole_folder(tmp_path / "empty") as folder:  # noqa: PT011
        (folder / "a.txt").write_text("newer")
    assert (tmp_path / "empty" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_failed_block_leaves_no_folder(tmp_path):
    def fail():
        with whole_folder(tmp_path / "codes") as folder:
            (folder / "a.txt").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_does_not_get_in(tmp_path):
    (tmp_path / ".codes.partial").mkdir()
    (tmp_path / ".codes.partial" / "old.txt").write_text("old")
    with whole_folder(tmp_path / "codes") as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in (tmp_path / "codes").iterdir()] == ["new.txt"]


def test_refuse_occupied(tmp_path):
    refuse_occupied(tmp_path / "none")
    refuse_occupied(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match="already holds a run; choose another output folder"):
        refuse_occupied(tmp_path)
    with pytest.raises(ConfigError, match=r"a.txt is there already"):
        refuse_occupied(tmp_path / "a.txt", "files")


# ---- stages


@dataclass
class Recipe:
    out: str = "here"
    model: dict = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)


def test_a_stage_saves_its_resolved_recipe(tmp_path):
    recipe = TokenizerRecipe(out=str(tmp_path / "run"), model={"num_codes": 8, "channel_multipliers": [1, 2.5]})
    folder = start_stage(tmp_path / "run", recipe, resume=False)
    assert folder == tmp_path / "run" / "training"
    assert folder.is_dir()
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["model"] == recipe.model
    assert saved["train"]["learning_rate"] == 1e-4
    assert saved["loss"]["perceptual_network"] == "lpips"


@pytest.mark.parametrize("trace", ["recipe.yaml", "config.json", "training"])
def test_a_stage_refuses_a_folder_with_traces_of_a_run(tmp_path, trace):
    (tmp_path / trace).mkdir() if trace == "training" else (tmp_path / trace).write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run; pass --resume to continue it"):
        start_stage(tmp_path, Recipe(), resume=False)


def test_a_stage_refuses_a_file(tmp_path):
    (tmp_path / "a.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: .*a.py is a file"):
        start_stage(tmp_path / "a.py", Recipe(), resume=False)


@pytest.mark.parametrize("name", ["pictures", "pictures/run", "pictures/a/../run"])
def test_a_run_among_the_pictures_is_refused(tmp_path, name):
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    with pytest.raises(ConfigError, match="lies in the folder of the pictures"):
        refuse_data_folder(tmp_path / name, str(tmp_path / "pictures"))
    refuse_data_folder(tmp_path / "run", str(tmp_path / "pictures"))
    refuse_data_folder(tmp_path / "run", "openmoji")


def test_a_stage_may_start_beside_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    start_stage(tmp_path, Recipe(), resume=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run to resume \(recipe.yaml is missing\)"):
        start_stage(tmp_path, Recipe(), resume=True)


def test_resuming_allows_what_does_not_change_the_run(tmp_path):
    start_stage(tmp_path, Recipe(train=TrainConfig(learning_rate=1e-5)), resume=False)
    other = TrainConfig(learning_rate=1e-5, max_minutes=3.0, num_workers=2, log_every=5, save_every=7, evaluate_every=9)
    start_stage(tmp_path, Recipe(out="moved", train=other), resume=True)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["train"]["num_workers"] == 2


def test_a_run_that_refused_a_picture_may_go_on_past_it(tmp_path):
    start_stage(tmp_path, TokenizerRecipe(data=DataConfig(unreadable="refuse")), resume=False)
    start_stage(tmp_path, TokenizerRecipe(), resume=True)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["data"]["unreadable"] == "skip"


def test_a_run_of_an_earlier_version_goes_on_with_what_its_missing_fields_stood_for(tmp_path):
    start_stage(tmp_path, GeneratorRecipe(), resume=False)
    file = tmp_path / "recipe.yaml"
    saved = yaml.safe_load(file.read_text())
    del (
        saved["condition"]["joint_dropout"],
        saved["condition"]["text_cache"],
        saved["objective"],
        saved["train"]["seed"],
    )
    file.write_text(yaml.safe_dump(saved))
    found = recipe_of_run(tmp_path, GeneratorRecipe)
    assert found["condition"]["joint_dropout"] == 0.0
    assert (found["condition"]["text_cache"], found["train"]["seed"]) == ("disk", 0)
    assert found["objective"]["random_order"] == 0.0
    start_stage(tmp_path, GeneratorRecipe(condition=ConditionConfig(joint_dropout=0.0)), resume=True)
    file.write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match=r"another condition.joint_dropout \(0.0, now 0.1\)"):
        start_stage(tmp_path, GeneratorRecipe(condition=ConditionConfig(joint_dropout=0.1)), resume=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (Recipe(train=TrainConfig(seed=1)), r"another train.seed \(0, now 1\)"),
        (Recipe(train=TrainConfig(batch_size=8)), r"another train.batch_size \(32, now 8\)"),
        (Recipe(model={"num_codes": 9}), r"another model.num_codes \(8, now 9\)"),
        (Recipe(model={}), r"another model.num_codes \(8, now None\)"),
        (Recipe(model={"num_codes": 8, "code_dim": 2}), r"another model.code_dim \(None, now 2\)"),
    ],
)
def test_resuming_refuses_another_recipe(tmp_path, changed, message):
    start_stage(tmp_path, Recipe(model={"num_codes": 8}), resume=False)
    before = (tmp_path / "recipe.yaml").read_text()
    if not changed.model and changed.train != TrainConfig():
        changed.model = {"num_codes": 8}
    with pytest.raises(ConfigError, match=message):
        start_stage(tmp_path, changed, resume=True)
    assert (tmp_path / "recipe.yaml").read_text() == before
