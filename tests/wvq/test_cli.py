"""The command line: help, parsing errors, the whole chain on tiny settings, and every bad input as one line."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from PIL import Image

import wvq
from tests.tiny import save_pipeline
from wvq import commands
from wvq.cli import COMMANDS, main
from wvq.parser import load_recipe, shipped_recipes
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.recipes import EvaluationRecipe, ExportRecipe, GeneratorRecipe, TokenizerRecipe

TOKENIZER = [
    "--model.patch_size=2",
    "--model.base_channels=8",
    "--model.channel_multipliers=[1,2]",
    "--model.num_res_blocks=1",
    "--model.attention=false",
    "--model.num_codes=32",
    "--model.code_dim=4",
    "--model.quantizer=sliced",
    "--train.images=160",
    "--train.batch_size=16",
]
GENERATOR = [
    "--model.hidden_size=32",
    "--model.num_layers=1",
    "--model.num_heads=2",
    "--train.images=64",
    "--train.batch_size=16",
    "--train.learning_rate=0.005",
]


@pytest.fixture(scope="module")
def pipeline_dir(tiny_tokenizer_dir, tmp_path_factory):
    return save_pipeline(tiny_tokenizer_dir, tmp_path_factory.mktemp("cli"))


@pytest.fixture
def fails(capsys):
    """A function that runs a command, asserts exit code 2 and one line on stderr, and returns that line."""

    def run(*arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert caught.value.code == 2
        # Progress bars write to stderr too, each ended by a carriage return.
        lines = [line for line in captured.err.splitlines() if line.strip() and "it/s" not in line and "%|" not in line]
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("wvq")
        assert ": error: " in lines[0]
        return lines[0]

    return run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory, monkeypatch):
    """A command that runs against expectation writes its default folders here."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def parsed(monkeypatch):
    """A function that parses a command line and returns the values that the command would run with."""

    def parse(*arguments):
        found = []
        name = next(n for n in COMMANDS if " ".join(arguments).startswith(n))
        command = COMMANDS[name]
        monkeypatch.setitem(COMMANDS, name, type(command)(name, command.help, command.add_arguments, found.append))
        assert main(list(arguments)) == 0
        return found[0]

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
    for field in getattr(recipe.get(name), "__dataclass_fields__", {"out": 0, "data": 0, "minutes": 0, "seed": 0}):
        assert f"--{field}" in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train-generator", "--help"], ["nonsense"]])
def test_help_and_parsing_import_nothing_heavy(arguments):
    code = (
        "import sys\nfrom wvq.cli import main\n"
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
        (["evaluate"], ['"reconstruction" or "generation"']),
        (["evaluate", "tokenizer"], ['"reconstruction" or "generation", got "tokenizer"']),
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
    recipe = commands._recipe(values, TokenizerRecipe)
    assert (recipe.out, recipe.train.images, recipe.train.batch_size) == ("here", 20, 2)
    assert recipe.model == {"num_codes": 64, "code_dim": 4}
    assert values.resume is False


def test_dashes_and_underscores_are_the_same(parsed):
    values = parsed("sample", "folder", "--num-images", "4", "--guidance-scale=2.5", "--class", "a-b", "--prompt=c-d_e")
    assert (values.num_images, values.guidance_scale) == (4, 2.5)
    assert (values.classes, values.prompt) == (["a-b"], ["c-d_e"])


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
    assert main(["train-tokenizer", *data, *TOKENIZER, f"--out={tokenizer}"]) == 0
    text = capsys.readouterr().out
    assert "psnr_rgb" in text
    assert f"next: wvq export-codes --tokenizer {tokenizer}" in text
    assert main(["export-codes", *data, f"--tokenizer={tokenizer}", f"--out={codes}", "--num_crops=2"]) == 0
    text = capsys.readouterr().out
    assert "rows decode at PSNR train" in text
    assert f"next: wvq train-generator --tokenizer {tokenizer} --codes {codes}" in text
    chain = [f"--tokenizer={tokenizer}", f"--codes={codes}", f"--out={out}"]
    assert main(["train-generator", *chain, *GENERATOR]) == 0
    assert f"next: wvq sample {out}" in capsys.readouterr().out

    samples = tmp_path / "samples"
    assert main(["sample", str(out), "--class", "cross", "0", "--num_images=4", "--seed=7", f"--out={samples}"]) == 0
    assert "4 pictures in" in capsys.readouterr().out
    files = sorted(file.name for file in samples.iterdir())
    assert files == ["000007.png", "000008.png", "000009.png", "000010.png", "sheet.png"]
    expected = ImageGenerationPipeline.from_pretrained(out)(class_labels=["cross", 0], num_images=4, seed=7).images
    for file, picture in zip(files, expected, strict=False):
        assert Image.open(samples / file).tobytes() == picture.tobytes()

    result = tmp_path / "reconstruction.json"
    assert main(["evaluate", "reconstruction", str(tokenizer), *data, f"--out={result}"]) == 0
    assert "floor, real against real" in capsys.readouterr().out
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
    ):
        assert main(["info", str(path)]) == 0
        assert word in capsys.readouterr().out


@pytest.fixture
def fast_network(monkeypatch):
    """EfficientNet at 16 px is slow for a test of wiring: means of the quarters in its place."""
    import torch

    from wvq.eval import features

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

    monkeypatch.setattr(features, "default_feature_network", lambda *a, **k: Means())


def test_sampling_by_prompt(pipeline_dir, tmp_path):
    assert main(["sample", str(pipeline_dir), "--prompt", "red circle", "blue", f"--out={tmp_path / 's'}"]) == 0
    expected = ImageGenerationPipeline.from_pretrained(pipeline_dir)(prompt=["red circle", "blue"], seed=0).images
    for index, picture in enumerate(expected):
        assert Image.open(tmp_path / "s" / f"{index:06d}.png").tobytes() == picture.tobytes()


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
    command = ["train-tokenizer", *data, *TOKENIZER, "--train.save_every=80"]
    assert main(command) == 0
    first = json.loads((tmp_path / "t" / "result.json").read_text())
    assert main([*command, "--resume"]) == 0
    assert json.loads((tmp_path / "t" / "result.json").read_text())["psnr_rgb"] == first["psnr_rgb"]


# ---- bad input


def test_missing_folder(fails, tmp_path):
    line = fails("train-tokenizer", f"--data.path={tmp_path / 'nowhere'}", f"--out={tmp_path / 't'}")
    assert "nowhere" in line
    assert not (tmp_path / "t").exists()


def test_no_pictures(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing to see")
    line = fails("train-tokenizer", f"--data.path={tmp_path / 'empty'}", f"--out={tmp_path / 't'}")
    assert "empty" in line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--class", "crosss"], ['class "crosss" is unknown', 'did you mean "cross"']),
        (["--class", "7"], ["class id 7 is out of range"]),
        (["--num_images=0"], ["num_images"]),
        (["--class", "cross", "circle", "--num_images=3"], ["multiple of the 2"]),
        (["--top_p=2"], ["top_p must be in (0, 1]"]),
        (["--temperature=-1"], ["temperature must be at least 0"]),
        (["--seed=-1"], ["seed must be"]),
        (["--batch_size=0"], ["batch_size must be"]),
        (["--device=abacus"], ['device "abacus" cannot be used here']),
    ],
)
def test_wrong_sampling(arguments, parts, fails, pipeline_dir, tmp_path):
    line = fails("sample", pipeline_dir, *arguments, f"--out={tmp_path / 's'}")
    for part in parts:
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_model_key(fails, picture_folder, tmp_path):
    data = [f"--data.path={picture_folder}", "--data.image_size=16", f"--out={tmp_path / 't'}"]
    line = fails("train-tokenizer", *data, "--model.num_code=32")
    assert '"num_code" (did you mean "num_codes"?)' in line


def test_unknown_class_of_the_data(fails, picture_folder, tmp_path):
    data = [f"--data.path={picture_folder}", "--data.image_size=16", f"--out={tmp_path / 't'}"]
    assert '"cross"' in fails("train-tokenizer", *data, "--data.classes=[crosss]")


@pytest.mark.parametrize("command", [["export-codes", "--tokenizer"], ["evaluate", "reconstruction"]])
def test_wrong_image_size(command, fails, picture_folder, tiny_tokenizer_dir, tmp_path):
    out = f"--out={tmp_path / 'o'}"
    line = fails(*command, tiny_tokenizer_dir, f"--data.path={picture_folder}", "--data.image_size=32", out)
    assert "data.image_size is 32" in line
    assert "was trained on 16" in line


def test_cache_of_another_tokenizer(fails, tiny_codes_dir, tiny_tokenizer_dir, tmp_path):
    import torch

    from wvq.tokenizer.modeling import WassersteinVQModel

    other = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    other.save_pretrained(tmp_path / "other")
    chain = [f"--tokenizer={tmp_path / 'other'}", f"--codes={tiny_codes_dir}", f"--out={tmp_path / 'o'}"]
    line = fails("train-generator", *chain, *GENERATOR)
    assert "was made by another tokenizer" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("part", ["tokenizer", "generator", "text_encoder"])
def test_damaged_pipeline(part, fails, pipeline_dir, tmp_path):
    shutil.copytree(pipeline_dir, tmp_path / "p")
    (tmp_path / "p" / part / "model.safetensors").write_bytes(b"cut")
    assert part in fails("sample", tmp_path / "p", f"--out={tmp_path / 's'}")
    shutil.rmtree(tmp_path / "p" / part)
    assert f"{part} folder is missing" in fails("sample", tmp_path / "p", f"--out={tmp_path / 's'}")


@pytest.mark.parametrize(
    "command", [["sample", "someone/model"], ["evaluate", "reconstruction", "someone/model"]], ids=["pipe", "tokenizer"]
)
def test_hub_id_without_network(command, fails, tmp_path):
    line = fails(*command, f"--out={tmp_path / 's'}")
    assert '"someone/model" is no local folder and could not be fetched from the Hub' in line


def test_data_set_id_without_network(fails, tmp_path):
    assert "someone/pictures" in fails("train-tokenizer", "--data.path=someone/pictures", f"--out={tmp_path / 't'}")


def test_occupied_output(fails, pipeline_dir, picture_folder, tiny_tokenizer_dir, tiny_codes_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "already holds" in fails("sample", pipeline_dir, f"--out={tmp_path}")
    data = [f"--data.path={picture_folder}", "--data.image_size=16"]
    assert "already holds" in fails("export-codes", *data, f"--tokenizer={tiny_tokenizer_dir}", f"--out={tmp_path}")
    assert "already holds" in fails("train-tokenizer", *data, *TOKENIZER, f"--out={tiny_tokenizer_dir}")
    assert "already holds" in fails("quickstart", f"--data={picture_folder}", f"--out={tmp_path}")
    chain = [f"--tokenizer={tiny_tokenizer_dir}", f"--codes={tiny_codes_dir}", f"--out={pipeline_dir}"]
    assert "already holds" in fails("train-generator", *chain, *GENERATOR)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_pipeline_folder_with_another_tokenizer_is_refused_before_training(
    fails, tiny_tokenizer_dir, tiny_codes_dir, tmp_path
):
    import torch

    from wvq.tokenizer.modeling import WassersteinVQModel

    other = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    other.save_pretrained(tmp_path / "o" / "tokenizer")
    chain = [f"--tokenizer={tiny_tokenizer_dir}", f"--codes={tiny_codes_dir}", f"--out={tmp_path / 'o'}"]
    line = fails("train-generator", *chain, *GENERATOR)
    assert "tokenizer already holds another tokenizer" in line
    assert not (tmp_path / "o" / "generator").exists()


def test_nothing_to_describe(fails, tmp_path):
    assert "no such file or folder" in fails("info", tmp_path / "nowhere")
    assert "holds no pipeline" in fails("info", tmp_path)


def test_inception_weights_with_another_network(fails, tiny_tokenizer_dir, picture_folder):
    data = [f"--data.path={picture_folder}", "--data.image_size=16"]
    options = ["--feature-network=efficientnet_lite0", "--inception-weights=w.pt"]
    line = fails("evaluate", "reconstruction", tiny_tokenizer_dir, *data, *options)
    assert "--inception-weights goes with the feature network inception" in line


def test_interruption_is_no_traceback(monkeypatch, capsys):
    def stop(values):
        raise KeyboardInterrupt

    command = COMMANDS["info"]
    monkeypatch.setitem(COMMANDS, "info", type(command)("info", command.help, command.add_arguments, stop))
    assert main(["info", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err
