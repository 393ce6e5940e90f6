"""The package: a built wheel works outside of the checkout, public names are lazy, imports run one way."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import wvq

ROOT = Path(__file__).parents[1]
FOLDERS = {"wvq": "wvq", "wvq.tokenizer": "tokenizer", "wvq.generator": "generator"} | {
    "wvq.pipelines": "pipelines",
    "wvq.eval": "eval",
    "wvq.configs": "configs",
    "wvq.assets": "wvq/assets",
}
HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "PIL")


def run(code: str, **options) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ("wvq", "tokenizer", "generator", "pipelines", "eval", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((folder / "dist").glob("wvq-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Options of a process that sees the installed wheel, the dependencies, and not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    target, elsewhere = folder / "site", folder / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=120)
    # PYTHONPATH goes ahead of the finder of the editable install.
    return {"cwd": elsewhere, "env": {**os.environ, "PYTHONPATH": str(target)}}, target


def test_the_wheel_holds_every_source_and_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in FOLDERS.items():
        files = [f for f in (ROOT / folder).glob("*") if f.is_file()]
        for file in files:
            assert f"{package.replace('.', '/')}/{file.name}" in names, file
    for recipe in (ROOT / "configs").rglob("*.yaml"):
        assert f"wvq/configs/{recipe.relative_to(ROOT / 'configs').as_posix()}" in names
    assert "wvq/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wvq"}


def test_the_wheel_works_outside_of_the_checkout(installed):
    options, target = installed
    code = (
        "import wvq, wvq.tokenizer.modeling, wvq.pipelines.image_generation, wvq.eval.report\n"
        "from wvq.parser import load_recipe, shipped_recipes\n"
        "from wvq.recipes import TokenizerRecipe\n"
        "from wvq.openmoji import __file__ as openmoji\n"
        "print(wvq.__file__, wvq.tokenizer.modeling.__file__, openmoji, sep='\\n')\n"
        "print(load_recipe(TokenizerRecipe, 'openmoji_32/tokenizer').data.path, *shipped_recipes())\n"
    )
    *files, recipes = run(code, **options).splitlines()
    assert all(Path(file).is_relative_to(target) for file in files), files
    assert recipes.split()[0] == "openmoji"
    assert {"openmoji_32/tokenizer", "openmoji_32/codes", "openmoji_32/generator"} <= set(recipes.split())


def test_the_command_of_the_wheel_runs(installed):
    options, target = installed
    command = [sys.executable, str(target / "bin" / "wvq"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    assert "train-tokenizer" in done.stdout


def test_the_wheel_reads_its_built_in_data(installed):
    code = "from wvq.data import load_images\nfrom wvq.recipes import DataConfig\n"
    code += "print(load_images(DataConfig(classes=['clocks'])).class_names)"
    assert "clocks" in run(code, **installed[0])


# ---- public names


@pytest.mark.parametrize("statement", ["import wvq", "import wvq.cli", "import wvq.recipes, wvq.parser, wvq.errors"])
def test_importing_loads_nothing_heavy(statement):
    assert run(f"import sys\n{statement}\nprint([m for m in {HEAVY} if m in sys.modules])").strip() == "[]"


@pytest.mark.parametrize("name", wvq.__all__)
def test_public_names_resolve(name):
    value = getattr(wvq, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__
        assert getattr(wvq, name) is value
    assert name in dir(wvq)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'wvq' has no attribute 'WassersteinVAEModel'"):
        wvq.WassersteinVAEModel  # noqa: B018
    with pytest.raises(ImportError):
        importlib.import_module("wvq.nothing")


def test_the_version_is_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"$', project, re.MULTILINE)[1] == wvq.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r'^version: "?([\d.]+)"?$', citation, re.MULTILINE)[1] == wvq.__version__


# ---- direction of imports

# Each layer may import the layers before it and itself; data, codes, training and what they need are the base.
BASE = {
    "data",
    "codes",
    "code_tables",
    "loading",
    "layout",
    "training",
    "acceleration",
    "optimization",
    "images",
    "errors",
    "ownership",
    "reading",
    "plain_output",
    "failures",
    "png_text",
    "recipes",
    "outputs",
    "pretrained",
    "networks",
    "tracking",
    "distributed",
    "hardware",
    "precision",
    "weight_files",
} | {
    "folders",
    "sources",
    "splits",
    "tables",
    "openmoji",
    "pictures",
    "averaging",
    "sharding",
    "checkpoints",
    "interruption",
    "locks",
    "memory",
    "order",
    "settings",
    "task",
    "unreadable",
    "parser",
    "terminal",
}
MAY_IMPORT = {
    "base": {"base"},
    "tokenizer": {"base", "tokenizer"},
    "generator": {"base", "generator"},
    "pipelines": {"base", "tokenizer", "generator", "pipelines"},
    "eval": {"base", "tokenizer", "generator", "pipelines", "eval"},
    "top": {"base", "tokenizer", "generator", "pipelines", "eval", "top"},
}


def layer(module: str) -> str:
    """Layer of a module such as wvq.tokenizer.train or wvq.data."""
    name = module.split(".")[1] if "." in module else ""
    if name in MAY_IMPORT:
        return name
    return "base" if name in BASE or name in ("", "assets", "configs") else "top"


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).glob("*.py"):
            found[package if file.stem == "__init__" else f"{package}.{file.stem}"] = file
    return found


def imports(file: Path) -> set[str]:
    """Modules of wvq that a file imports anywhere, also within functions, but for type checking only."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = {f"{node.module}.{alias.name}" if node.module == "wvq" else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "wvq" and name != "wvq"}
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_run_one_way(module):
    for imported in imports(modules()[module]):
        allowed = MAY_IMPORT[layer(module)]
        assert layer(imported) in allowed, f"{module} ({layer(module)}) imports {imported} ({layer(imported)})"


def test_the_walk_over_imports_sees_them():
    found = imports(ROOT / "pipelines" / "image_generation.py")
    assert {"wvq.generator.modeling", "wvq.tokenizer.modeling", "wvq.errors"} <= found
    assert len(modules()) > 30
    assert {layer(m) for m in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_file_says_what_it_does(module):
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), f"{module} has no docstring in its first line"
