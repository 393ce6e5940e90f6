"""Output folders: a run starts in an empty place or goes on with its own, and never writes over another."""

from dataclasses import dataclass, field

import pytest
import yaml

from wvq.errors import ConfigError
from wvq.files.stage_folder import recipe_of_run, refuse_data_folder, refuse_occupied, start_stage
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.settings.data import DataConfig
from wvq.settings.train import TrainConfig
from wvq.tokenizer.recipes import TokenizerRecipe


def test_refuse_occupied(tmp_path):
    refuse_occupied(tmp_path / "none")
    refuse_occupied(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match="already holds a run; choose another output folder"):
        refuse_occupied(tmp_path)
    with pytest.raises(ConfigError, match=r"a.txt is there already"):
        refuse_occupied(tmp_path / "a.txt", "files")


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


@pytest.mark.parametrize("trace", ["recipe.yaml", "training"])
def test_a_stage_refuses_a_folder_with_traces_of_a_run(tmp_path, trace):
    (tmp_path / trace).mkdir() if trace == "training" else (tmp_path / trace).write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run; pass --resume to continue it"):
        start_stage(tmp_path, Recipe(), resume=False)


@pytest.mark.parametrize("trace", ["config.json", "model_index.json"])
def test_a_stage_refuses_the_folder_of_a_model_or_a_pipeline(tmp_path, trace):
    (tmp_path / trace).write_text("{}")
    with pytest.raises(ConfigError, match="already holds a model; choose another output folder"):
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


def test_the_pictures_may_lie_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ConfigError, match="lies in the folder of the pictures"):
        refuse_data_folder(tmp_path / "pictures" / "run", "~/pictures")


def test_a_stage_may_start_beside_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    start_stage(tmp_path, Recipe(), resume=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "result.json"])
def test_a_stage_refuses_a_folder_whose_files_it_would_write_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name} would be written over at the end of the run"):
        start_stage(tmp_path, Recipe(), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run to resume \(recipe.yaml is missing\)"):
        start_stage(tmp_path, Recipe(), resume=True)


def test_resuming_allows_what_does_not_change_the_run_and_says_what_is_new(tmp_path):
    start_stage(tmp_path, Recipe(train=TrainConfig(learning_rate=1e-5, compile=True)), resume=False)
    rhythm = {"max_minutes": 3.0, "num_workers": 2, "log_every": 5, "save_every": 7, "evaluate_every": 9}
    rhythm["keep_checkpoints"] = 3
    ways = {"compile": False, "channels_last": True, "gradient_checkpointing": True}
    other = TrainConfig(learning_rate=1e-5, **rhythm, **ways)
    with pytest.warns(UserWarning, match=r"goes on with another .*train.compile \(True, now False\)") as told:
        start_stage(tmp_path, Recipe(out="moved", train=other), resume=True)
    (line,) = [str(warning.message) for warning in told]
    assert all(f"train.{name} (" in line for name in (*rhythm, *ways))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["train"]["num_workers"] == 2


def test_a_run_of_a_version_with_fewer_fields_is_resumed_with_their_defaults(tmp_path):
    start_stage(tmp_path, Recipe(model={"num_codes": 8}), resume=False)
    saved = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    del saved["train"]["gradient_checkpointing"], saved["train"]["schedule"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(saved))
    start_stage(tmp_path, Recipe(model={"num_codes": 8}), resume=True)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match=r"another train.schedule \('cosine', now 'linear'\)"):
        start_stage(tmp_path, Recipe(model={"num_codes": 8}, train=TrainConfig(schedule="linear")), resume=True)


def test_a_run_that_refused_a_picture_may_go_on_past_it(tmp_path):
    start_stage(tmp_path, TokenizerRecipe(data=DataConfig(unreadable="refuse")), resume=False)
    with pytest.warns(UserWarning, match=r"data.unreadable \('refuse', now 'skip'\)"):
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


def test_a_run_of_an_earlier_version_goes_on_though_its_paths_were_saved_as_written(tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv("HOME", str(tmp_path))
    before = TokenizerRecipe(out="~/run/", data=DataConfig(path="~/pictures/"))
    start_stage(tmp_path / "run", before, resume=False)
    now = TokenizerRecipe(out=str(tmp_path / "run"), data=DataConfig(path=str(tmp_path / "pictures")))
    start_stage(tmp_path / "run", now, resume=True)
    assert not recwarn
    now.data.path = str(tmp_path / "others")
    with pytest.raises(ConfigError, match=r"was started with another data\.path"):
        start_stage(tmp_path / "run", now, resume=True)
