"""The command line: help, parsing errors, the whole chain on tiny settings."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from PIL import Image

import wvq
from tests.tiny import TINY_GENERATOR, TINY_TOKENIZER
from wvq.app import commands
from wvq.app.cli import COMMANDS, main
from wvq.app.recipes import QuickstartRecipe
from wvq.eval.recipes import EvaluationRecipe
from wvq.generator.recipes import GeneratorRecipe
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.sampling_job import read_settings
from wvq.settings.parser import load_recipe, shipped_recipes
from wvq.tokenizer.recipes import ExportRecipe, TokenizerRecipe

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def parsed(monkeypatch):
    """A function that parses a command line and returns the values that the command would run with."""

    def parse(*arguments):
        runs = []
        name = next(n for n in COMMANDS if " ".join(arguments).startswith(n))
        command = COMMANDS[name]
        monkeypatch.setitem(COMMANDS, name, type(command)(name, command.help, command.add_arguments, runs.append))
        assert main(list(arguments)) == 0
        return runs[0]

    return parse


# ---- help


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.help in text
    assert main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    captured = capsys.readouterr()
    assert f"wvq {name}" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("name", ["train-tokenizer", "export-codes", "train-generator", "quickstart"])
def test_help_explains_every_recipe_field(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    recipe = {"train-tokenizer": TokenizerRecipe, "export-codes": ExportRecipe, "train-generator": GeneratorRecipe}
    for field in fields(recipe.get(name, QuickstartRecipe)):
        assert f"--{field.name}" in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train-generator", "--help"], ["nonsense"]])
def test_help_and_parsing_import_nothing_heavy(arguments):
    code = (
        "import sys\nfrom wvq.app.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'matplotlib', 'PIL', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"wvq {wvq.__version__}\n"


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "wvq", "smaple"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == 'wvq: error: unknown command "smaple" (did you mean "sample"?); see wvq --help\n'


# ---- parsing


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian-tokenizer"], ['unknown command "trian-tokenizer"', '"train-tokenizer"']),
        (["evaluate"], ['"reconstruction", "generation" or "compare"']),
        (["evaluate", "tokenizer"], ['"reconstruction", "generation" or "compare", got "tokenizer"']),
        (["train-tokenizer", "--train.batchsize=3"], ["train.batchsize", '"train.batch_size"']),
        (["train-tokenizer", "--train.batchsize", "3"], ["train.batchsize", '"train.batch_size"']),
        (["train-tokenizer", "--dta.path=x"], ["dta.path", '"data.path"']),
        (["train-tokenizer", "--train.batch_size=many"], ["train.batch_size", "many", "int"]),
        (["train-tokenizer", "--train.learning_rate=fast"], ["train.learning_rate", "fast", "float"]),
        (["train-tokenizer", "--data.flip=maybe"], ["data.flip", "maybe", "bool"]),
        (["sample"], ["pipeline"]),
        (["sample", "p", "--num_images=two"], ["num_images", "two"]),
        (["sample", "p", "--guidance=2"], ["guidance", '"guidance_scale"']),
        (["sample", "p", "q"], ["q"]),
        (["info"], ["path"]),
        (["quickstart", "--minute=3"], ["minute", '"minutes"']),
        (["train-tokenizer", "--config"], ["config"]),
        (["train-tokenizer", "--config=nowhere.yaml"], ["recipe nowhere.yaml: no such file", "openmoji_32/tokenizer"]),
        (["train-tokenizer", "--config=openmoji_32/tokeniser"], ['did you mean "openmoji_32/tokenizer"']),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, parts, fails):
    line = fails(*arguments)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train:\n  batchsize: 3\n", ["train.batchsize", '"train.batch_size"']),
        ("trian:\n  batch_size: 3\n", ["trian.batch_size", '"train.batch_size"']),
        ("train:\n  batch_size: many\n", ["train.batch_size", "many"]),
        ("train: 3\n", ["train must hold fields by name, got 3"]),
        ("", ["recipe.yaml must hold fields by name"]),
        ("- 1\n", ["recipe.yaml"]),
        ("train: [\n", ["recipe.yaml"]),
        ("num_crops: 8\n", ["num_crops"]),  # the recipe of another command
    ],
)
def test_a_wrong_recipe_is_one_line(text, parts, fails, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    line = fails("train-tokenizer", "--config", tmp_path / "recipe.yaml")
    for part in parts:
        assert part in line


def test_dotted_overrides_win_over_the_recipe(parsed, tmp_path):
    (tmp_path / "r.yaml").write_text("out: here\ntrain:\n  images: 10\n  batch_size: 2\nmodel:\n  num_codes: 64\n")
    values = parsed("train-tokenizer", f"--config={tmp_path / 'r.yaml'}", "--train.images=20", "--model.code_dim", "4")
    recipe = commands.recipe_of(values, TokenizerRecipe)
    assert (recipe.out, recipe.train.images, recipe.train.batch_size) == ("here", 20, 2)
    assert recipe.model == {"num_codes": 64, "code_dim": 4}
    assert values.resume is False


@pytest.mark.parametrize(
    ("words", "flip", "forced"),
    [
        (["--force-reference"], False, True),
        (["--force-reference", "--data.flip"], True, True),
        (["--data.flip", "false", "--force_reference", "true"], False, True),
        (["--force-reference", "false"], False, False),
        ([], False, False),
    ],
)
def test_switches_need_no_value(words, flip, forced, parsed):
    values = parsed("evaluate", "generation", "pipeline", *words)
    assert (values.data.flip, values.force_reference) == (flip, forced)


def test_dashes_and_underscores_are_the_same(parsed):
    values = parsed("sample", "folder", "--num-images", "4", "--guidance-scale=2.5", "--class", "a-b", "--prompt=c-d_e")
    assert (values.num_images, values.guidance_scale) == (4, 2.5)
    assert (values.classes, values.prompt) == (["a-b"], ["c-d_e"])


def test_deterministic_is_the_pipelines_own_unless_it_is_given(parsed):
    assert parsed("sample", "folder").deterministic is None
    assert parsed("sample", "folder", "--deterministic", "--seed=3").deterministic is True
    assert parsed("evaluate", "generation", "folder", "--deterministic").deterministic is True


@pytest.mark.parametrize("name", ["openmoji_32/tokenizer", "configs/openmoji_32/tokenizer.yaml"])
def test_shipped_recipes_are_found_by_name(name, parsed):
    values = parsed("train-tokenizer", "--config", name, "--resume")
    assert values.data.path == "openmoji"
    assert values.model["quantizer"] == "sliced"
    assert values.resume is True


def test_every_shipped_recipe_parses():
    kinds = {
        "tokenizer": TokenizerRecipe,
        "codes": ExportRecipe,
        "generator": GeneratorRecipe,
        "evaluation": EvaluationRecipe,
    }
    names = shipped_recipes()
    assert {"openmoji_32/tokenizer", "openmoji_32/codes", "openmoji_32/generator"} <= set(names)
    for name, file in names.items():
        kind = next(recipe for word, recipe in kinds.items() if name.split("/")[1].startswith(word))
        recipe = load_recipe(kind, name)
        for key, value in yaml.safe_load(file.read_text()).items():
            mine = getattr(recipe, key)
            assert (mine if not hasattr(mine, "__dict__") else {k: getattr(mine, k) for k in value}) == value


# ---- the chain


def test_the_whole_chain(picture_folder, tmp_path, capsys, fast_network):
    data = [f"--data.path={picture_folder}", "--data.image_size=16", "--data.validation_fraction=0.2"]
    tokenizer, codes, out = tmp_path / "tokenizer", tmp_path / "codes", tmp_path / "pipeline"
    assert main(["train-tokenizer", *data, *TINY_TOKENIZER, f"--out={tokenizer}"]) == 0
    text = capsys.readouterr().out
    read = "pictures: 48 training, 12 held out (20% of each class); 3 classes (circle, cross, square); no captions\n"
    assert text.count(read) == 1
    assert "psnr_rgb" in text
    assert f"next: wvq export-codes --tokenizer {tokenizer}" in text
    assert main(["export-codes", *data, f"--tokenizer={tokenizer}", f"--out={codes}", "--num_crops=2"]) == 0
    text = capsys.readouterr().out
    assert text.count(read) == 1
    assert "rows decode at PSNR train" in text
    assert f"next: wvq train-generator --tokenizer {tokenizer} --codes {codes}" in text
    chain = [f"--tokenizer={tokenizer}", f"--codes={codes}", f"--out={out}"]
    assert main(["train-generator", *chain, *TINY_GENERATOR]) == 0
    text = capsys.readouterr().out
    assert text.count("codes: 48 training pictures in 2 crops each, 12 held out; 3 classes; no captions\n") == 1
    assert f"next: wvq sample {out}" in text

    samples = tmp_path / "samples"
    assert main(["sample", str(out), "--class", "cross", "0", "--num_images=4", "--seed=7", f"--out={samples}"]) == 0
    assert "4 pictures in" in capsys.readouterr().out
    files = sorted(file.name for file in samples.iterdir())
    assert files == ["000007.png", "000008.png", "000009.png", "000010.png", "job.json", "sheet.png"]
    expected = ImageGenerationPipeline.from_pretrained(out)(class_labels=["cross", 0], num_images=4, seed=7).images
    for file, picture in zip(files[:4], expected, strict=True):
        assert Image.open(samples / file).tobytes() == picture.tobytes()

    result = tmp_path / "reconstruction.json"
    assert main(["evaluate", "reconstruction", str(tokenizer), *data, f"--out={result}"]) == 0
    text = capsys.readouterr().out
    assert text.count(read) == 1
    assert "floor, real against real" in text
    values = json.loads(result.read_text())
    assert (values["kind"], values["num_images"]) == ("reconstruction", 12)
    assert values["settings"]["tokenizer"] == str(tokenizer)

    result = tmp_path / "generation.json"
    command = ["evaluate", "generation", str(out), *data, f"--out={result}", "--num_images=12", "--top_k=5"]
    assert main(command) == 0
    values = json.loads(result.read_text())
    assert (values["kind"], values["num_images"], values["settings"]["top_k"]) == ("generation", 12, 5)
    capsys.readouterr()

    for path, word in (
        (tokenizer, "image tokenizer"),
        (codes, "code cache"),
        (out, "image generation pipeline"),
        (out / "generator", "generator of image codes"),
        (result, "generation result"),
        (samples / "000009.png", "sampled picture"),
    ):
        assert main(["info", str(path)]) == 0
        assert word in capsys.readouterr().out


@pytest.fixture
def fast_network(monkeypatch):
    """EfficientNet at 16 px is slow for a test of wiring: means of the quarters in its place."""
    import torch

    from wvq.eval.features import networks as features

    class Means(features.FeatureNetwork):
        name, dim = "means", 12

        def __init__(self):
            super().__init__("0" * 64)
            self.register_parameter("nothing", torch.nn.Parameter(torch.zeros(1), requires_grad=False))

        def recipe(self, image_size):
            return "means"

        def _compute(self, images):
            means = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
            return features.FeatureOutput(means, None)

    monkeypatch.setattr("wvq.eval.run.default_feature_network", lambda *a, **k: Means())


def test_sampling_by_prompt(pipeline_dir, tmp_path):
    assert main(["sample", str(pipeline_dir), "--prompt", "red circle", "blue", f"--out={tmp_path / 's'}"]) == 0
    expected = ImageGenerationPipeline.from_pretrained(pipeline_dir)(prompt=["red circle", "blue"], seed=0).images
    for index, picture in enumerate(expected):
        assert Image.open(tmp_path / "s" / f"{index:06d}.png").tobytes() == picture.tobytes()


def test_sampling_a_file_of_prompts(pipeline_dir, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffred circle\n\n  blue \n", encoding="utf-8")
    command = ["sample", str(pipeline_dir), f"--prompt-file={tmp_path / 'prompts.txt'}", f"--out={tmp_path / 's'}"]
    assert main([*command, "--num_images=4"]) == 0
    settings = [read_settings(tmp_path / "s" / f"{index:06d}.png") for index in range(4)]
    assert [given["prompt"] for given in settings] == ["red circle"] * 2 + ["blue"] * 2


def test_greedy_sampling_is_said(pipeline_dir, tmp_path, capsys):
    assert main(["sample", str(pipeline_dir), "--temperature=0", f"--out={tmp_path / 's'}"]) == 0
    assert "temperature 0: the likeliest code each time" in capsys.readouterr().out


def test_settings_reach_the_sampler(pipeline_dir, tmp_path):
    settings = {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 3, "top_p": 0.7}
    options = [f"--{name}={value}" for name, value in settings.items()]
    assert main(["sample", str(pipeline_dir), "--class=cross", *options, "--seed=2", f"--out={tmp_path / 's'}"]) == 0
    pipe = ImageGenerationPipeline.from_pretrained(pipeline_dir)
    expected = pipe(class_labels="cross", seed=2, **settings).images[0]
    assert Image.open(tmp_path / "s" / "000002.png").tobytes() == expected.tobytes()
    assert pipe(class_labels="cross", seed=2).images[0].tobytes() != expected.tobytes()


def test_resume_continues_a_run(picture_folder, tmp_path, capsys):
    data = [f"--data.path={picture_folder}", "--data.image_size=16", f"--out={tmp_path / 't'}"]
    command = ["train-tokenizer", *data, *TINY_TOKENIZER, "--train.save_every=80"]
    assert main(command) == 0
    first = json.loads((tmp_path / "t" / "result.json").read_text())
    assert main([*command, "--resume"]) == 0
    assert json.loads((tmp_path / "t" / "result.json").read_text())["psnr_rgb"] == first["psnr_rgb"]
