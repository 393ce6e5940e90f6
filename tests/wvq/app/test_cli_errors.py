"""The command line on bad input: one line that names the field or file, exit code 2, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from tests.tiny import TINY_GENERATOR, TINY_TOKENIZER
from wvq.app.cli import COMMANDS, main
from wvq.errors import ConfigError
from wvq.settings.parser import Parser

pytestmark = pytest.mark.usefixtures("elsewhere")


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
        (["--seed=99999999999999999999"], ["seed must be", "2**63"]),
        (["--batch_size=0"], ["batch_size must be"]),
        (["--device=abacus"], ['device "abacus" cannot be used here']),
        (["--guidance_scale=-2"], ["guidance_scale must be at least 0"]),
        (["--prompt_file=nowhere.txt"], ["prompt_file: nowhere.txt cannot be read (No such file or directory)"]),
        (["--prompt=red", "--prompt_file=prompts.txt"], ["--prompt and --prompt-file are both given"]),
        (["--resume"], ["holds no job to resume (job.json is missing)"]),
        (["--image=nowhere.png", "--mask-image=mask.png"], ["image: nowhere.png cannot be read as a picture"]),
        (["--mask-image=mask.png"], ["mask_image is given without image"]),
        (["--image=photo.png", "--keep-scales=1"], ["keep_scales needs a generator that draws scale by scale"]),
        (["--preview"], ["previews need a generator that draws scale by scale"]),
    ],
)
def test_wrong_sampling(arguments, parts, fails, pipeline_dir, tmp_path):
    line = fails("sample", pipeline_dir, *arguments, f"--out={tmp_path / 's'}")
    for part in parts:
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_does_not_write_over_files_that_none_wrote(fails, pipeline_dir, tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    line = fails("evaluate", "generation", pipeline_dir, f"--out={tmp_path / 'notes.json'}")
    assert "notes.md would be written over" in line
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("notes.md", "mine")]


def test_a_finished_result_is_not_measured_over(fails, pipeline_dir, picture_folder, tmp_path, monkeypatch):
    out = tmp_path / "r.json"
    command = ["evaluate", "generation", pipeline_dir, f"--data.path={picture_folder}", f"--out={out}"]
    result = {"kind": "generation", "metrics": {}, "floor": {}, "settings": {}}
    out.write_text(json.dumps(result))
    assert f"out: {out} is the result of an evaluation; choose another name, or give --overwrite" in fails(*command)
    out.rename(tmp_path / "kept.json")
    out.with_suffix(".md").write_text("# Evaluation of samples")
    assert "r.md is the result of an evaluation" in fails(*command)
    past_the_check = "class_choice was read"

    def stop(*_):
        raise ConfigError(past_the_check)

    monkeypatch.setattr("wvq.eval.run.resolve_folder", stop)
    assert past_the_check in fails(*command, "--overwrite")
    (tmp_path / "r.json.partial").mkdir()  # of one that was stopped
    assert past_the_check in fails(*command)
    assert (tmp_path / "kept.json").read_text() == json.dumps(result)


def test_a_size_of_real_pictures_other_than_that_of_the_samples(fails, pipeline_dir, picture_folder):
    command = ["evaluate", "generation", pipeline_dir, f"--data.path={picture_folder}", "--num_images=6"]
    line = fails(*command, "--data.image_size=24")
    assert "data.image_size is 24, and real pictures are read at the size of the samples, 16 px; leave it out" in line
    for fitting in ("16", "32"):  # the size of the samples, and the default
        assert "data.image_size" not in fails(
            *command, f"--data.image_size={fitting}", "--classes=balanced", "--seed=-1"
        )


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("rouge é\n".encode("latin1"), "prompts.txt: line 1 is not UTF-8 text (byte e9)"),
        ("red\ncircle\né".encode("latin1"), "prompts.txt: line 3 is not UTF-8 text"),
        ("red\n".encode("utf-16-le"), "prompts.txt: line 1 is not UTF-8 text (a zero byte)"),
    ],
)
def test_a_prompt_file_in_another_encoding(content, part, fails, pipeline_dir, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(content)
    line = fails("sample", pipeline_dir, f"--prompt_file={tmp_path / 'prompts.txt'}", f"--out={tmp_path / 's'}")
    assert part in line
    assert "iconv" in line
    assert not (tmp_path / "s").exists()


def test_a_prompt_of_bytes_that_are_no_text(fails, pipeline_dir, tmp_path):
    line = fails("sample", pipeline_dir, "--prompt", "a\udcff", f"--out={tmp_path / 's'}")
    assert r"prompt 'a\udcff': it holds bytes that are no UTF-8 text" in line
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--out=", "got '': it is empty"),
        ("--out=file:///tmp/x", "got 'file:///tmp/x': write /tmp/x"),
        ("--out=s3://bucket/x", "it is a URL"),
        ("--out=~no-such-user/x", "this user has no home folder here"),
    ],
)
@pytest.mark.parametrize(
    "command",
    ["sample p", "train-tokenizer", "export-codes", "train-generator", "quickstart", "evaluate reconstruction t",
     "evaluate generation p", "study atomic"],
)  # fmt: skip
def test_an_output_that_is_no_path(command, option, message, fails):
    line = fails(*command.split(), option)
    assert "out must be a path" in line
    assert message in line
    assert list(Path().iterdir()) == []


def test_a_home_within_quotes_is_the_users(fails, pipeline_dir, picture_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").write_text("mine")
    assert f"{tmp_path}/mine is there already" in fails("sample", pipeline_dir, "--out=~/mine")
    line = fails("train-tokenizer", "--data.path", "~/nowhere/", "--out", "t")
    assert f"{tmp_path}/nowhere" in line
    assert f"{tmp_path}/nowhere" in fails("train-generator", "--codes=~/nowhere", "--tokenizer", "t")
    (tmp_path / "mine.yaml").write_text("outt: x")
    assert 'unknown option outt (did you mean "out"?)' in fails("train-generator", "--config=~/mine.yaml")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["train-tokenizer", "--resume"],
        ["train-tokenizer", "--model.num_code=3"],
        ["train-tokenizer", "--data.classes=[x]"],
        ["train-tokenizer", "--start=/nowhere"],
        ["export-codes", "--tokenizer=/nowhere"],
        ["train-generator", "--codes=/nowhere"],
        ["train-generator", "--resume"],
        ["sample", "--resume"],
        ["sample", "--class=x"],
        ["quickstart", "--minutes=-1"],
        ["study", "atomic", "--preset=x"],
        ["evaluate", "generation", "--num_images=7", "--save_samples=deep/er/samples"],
    ],
    ids=lambda words: "_".join(words),
)
def test_a_start_that_fails_leaves_no_folder_behind(command, fails, pipeline_dir, picture_folder):
    given = [pipeline_dir] if command[0] in ("sample", "evaluate") else []
    named = [word for word in command if not word.startswith("--")]
    data = (
        [f"--data.path={picture_folder}", "--data.image_size=16"]
        if command[0] in ("train-tokenizer", "export-codes")
        else []
    )
    data += [f"--data.path={picture_folder}"] if command[0] == "evaluate" else []
    fails(*named, *given, *data, *command[len(named) :], "--out=deep/er/x.json")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("name", "other"), [("HF_HOME", "HF_DATASETS_CACHE"), ("HF_DATASETS_CACHE", "HF_HOME")])
def test_a_cache_that_cannot_be_written_is_blamed_by_its_name(name, other, tmp_path):
    (tmp_path / "file").write_text("no folder")
    parquet = tmp_path / "pictures.parquet"
    datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": None}]}).to_parquet(parquet)
    environment = {**os.environ, name: str(tmp_path / "file" / "cache")}
    environment.pop(other, None)
    command = [sys.executable, "-m", "wvq", "train-tokenizer", f"--data.path={parquet}", f"--out={tmp_path / 't'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    line = f"{name}: {tmp_path / 'file' / 'cache'} cannot be written (Not a directory); set it to a folder of yours"
    assert (done.returncode, done.stderr) == (2, f"wvq train-tokenizer: error: {line}\n")
    assert not (tmp_path / "t").exists()


def test_a_prompt_file_without_prompts(fails, pipeline_dir, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n  \n")
    line = fails("sample", pipeline_dir, f"--prompt_file={tmp_path / 'prompts.txt'}", f"--out={tmp_path / 's'}")
    assert "prompts.txt holds no prompts; write one a line" in line
    assert not (tmp_path / "s").exists()


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

    from wvq.tokenizer.modeling import WassersteinVQModel

    other = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    other.save_pretrained(tmp_path / "other")
    chain = [f"--tokenizer={tmp_path / 'other'}", f"--codes={tiny_codes_dir}", f"--out={tmp_path / 'o'}"]
    line = fails("train-generator", *chain, *TINY_GENERATOR)
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
    assert "already holds" in fails("train-tokenizer", *data, *TINY_TOKENIZER, f"--out={tiny_tokenizer_dir}")
    assert "already holds" in fails("quickstart", f"--data={picture_folder}", f"--out={tmp_path}")
    chain = [f"--tokenizer={tiny_tokenizer_dir}", f"--codes={tiny_codes_dir}", f"--out={pipeline_dir}"]
    assert "already holds" in fails("train-generator", *chain, *TINY_GENERATOR)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_pipeline_folder_with_another_tokenizer_is_refused_before_training(
    fails, tiny_tokenizer_dir, tiny_codes_dir, tmp_path
):

    from wvq.tokenizer.modeling import WassersteinVQModel

    other = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    other.save_pretrained(tmp_path / "o" / "tokenizer")
    chain = [f"--tokenizer={tiny_tokenizer_dir}", f"--codes={tiny_codes_dir}", f"--out={tmp_path / 'o'}"]
    line = fails("train-generator", *chain, *TINY_GENERATOR)
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


@pytest.mark.parametrize(
    "command", [["sample"], ["evaluate", "generation"], ["evaluate", "reconstruction"]], ids=lambda words: words[-1]
)
def test_a_device_without_values_is_one_line(command, fails, tmp_path):
    line = fails(*command, tmp_path / "nothing", f"--out={tmp_path / 'o'}", "--device=meta")
    assert 'device "meta" cannot be used here' in line


def test_lpips_is_no_setting_of_samples():
    parser = Parser()
    COMMANDS["evaluate generation"].add_arguments(parser)
    assert "lpips" not in parser.format_help()
    with pytest.warns(UserWarning, match="lpips vgg.pth is a setting of the tokenizer and does nothing here"):
        parser.build(parser.parse(["pipeline", "--lpips=vgg.pth"]))  # from a file that both evaluations read


def test_interruption_is_no_traceback(monkeypatch, capsys):
    def stop(values):
        raise KeyboardInterrupt

    command = COMMANDS["info"]
    monkeypatch.setitem(COMMANDS, "info", type(command)("info", command.help, command.add_arguments, stop))
    assert main(["info", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_interruption_while_torch_is_imported_is_no_traceback(monkeypatch, capsys):
    """Half of it is there then, and cannot be imported again."""

    def stop(values):
        monkeypatch.delitem(sys.modules, "wvq.distributed", raising=False)
        monkeypatch.setitem(sys.modules, "torch", None)
        raise KeyboardInterrupt

    command = COMMANDS["info"]
    monkeypatch.setitem(COMMANDS, "info", type(command)("info", command.help, command.add_arguments, stop))
    assert main(["info", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251"])
def test_a_terminal_that_lacks_characters_shows_their_codes(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "wvq", "info", "нет ☃"]
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    name = "нет" if encoding == "cp1251" else r"\u043d\u0435\u0442"
    line = f"wvq info: error: {name} \\u2603: no such file or folder\n"
    assert (done.returncode, done.stderr.decode(encoding)) == (2, line)


@pytest.mark.parametrize(
    "command",
    [
        ["train-tokenizer", "--data.path=кот", "--out=t"],
        ["train-tokenizer", "--data.path=.", "--data.layout=plain", "--out=../t"],
        ["sample", "{pipeline}", "--prompt=кот", "--out=../t"],
        ["sample", "{pipeline}", "--class=кот", "--out=../t"],
    ],
    ids=["option", "file", "prompt", "class"],
)
def test_a_locale_that_is_not_utf_8_is_blamed_by_its_name(command, tmp_path, pipeline_dir):
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"кот {number}.png")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "wvq", *(part.format(pipeline=pipeline_dir) for part in command)],
        cwd=tmp_path / "pictures",
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    line = "it is UTF-8 text, which this locale takes as ascii; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert line in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
