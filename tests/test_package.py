"""The package: a built wheel works outside of the checkout, public names are lazy, imports run one way."""

import ast
import functools
import graphlib
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
ROOMS = ("tokenizer", "generator", "pipelines", "eval", "configs")  # folders beside wvq/ that hold its sub-packages
# The floors, from the ground up: what stands on one may import from those before it. Folders of wvq/ are floors of
# their own; any other folder is a room of the floor that it lies in.
FLOORS = ("wvq", "wvq.files", "wvq.settings", "wvq.models", "wvq.data", "wvq.training", "wvq.tokenizer")
FLOORS += ("wvq.generator", "wvq.pipelines", "wvq.eval", "wvq.app")
APART = {("wvq.tokenizer", "wvq.generator")}  # on one level: neither imports the other
has_sources = pytest.mark.skipif(
    not (ROOT / "wvq").is_dir(), reason="the sources of the package do not lie beside the tests"
)
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
    for name in ("wvq", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
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


@has_sources
def test_the_wheel_holds_every_source_and_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for top in ("wvq", *ROOMS):
        package = top if top == "wvq" else f"wvq/{top}"
        for file in (ROOT / top).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{package}/{file.relative_to(ROOT / top).as_posix()}" in names, file
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wvq"}


@has_sources
def test_the_wheel_works_outside_of_the_checkout(installed):
    """Its modules are its own, and it finds its recipes and its built-in pictures."""
    options, target = installed
    code = (
        "import wvq, wvq.tokenizer.modeling, wvq.pipelines.image_generation, wvq.eval.report.page\n"
        "from wvq.settings.parser import load_recipe, shipped_recipes\n"
        "from wvq.tokenizer.recipes import TokenizerRecipe\n"
        "from wvq.data.openmoji import __file__ as openmoji\n"
        "print(wvq.__file__, wvq.tokenizer.modeling.__file__, openmoji, sep='\\n')\n"
        "print(load_recipe(TokenizerRecipe, 'openmoji_32/tokenizer').data.path, *shipped_recipes())\n"
        "from wvq.data.dataset import load_images\n"
        "from wvq.settings.data import DataConfig\n"
        "print(load_images(DataConfig(classes=['clocks'])).class_names)\n"
    )
    *files, recipes, classes = run(code, **options).splitlines()
    assert all(Path(file).is_relative_to(target) for file in files), files
    assert recipes.split()[0] == "openmoji"
    assert {"openmoji_32/tokenizer", "openmoji_32/codes", "openmoji_32/generator"} <= set(recipes.split())
    assert "clocks" in classes


@has_sources
def test_the_command_of_the_wheel_runs(installed):
    options, target = installed
    command = [sys.executable, str(target / "bin" / "wvq"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    assert "train-tokenizer" in done.stdout


# ---- public names


@pytest.mark.parametrize(
    "statement", ["import wvq", "import wvq.app.cli", "import wvq.settings.parser, wvq.tokenizer.recipes"]
)
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


@has_sources
def test_the_version_is_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"$', project, re.MULTILINE)[1] == wvq.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r'^version: "?([\d.]+)"?$', citation, re.MULTILINE)[1] == wvq.__version__


# ---- direction of imports


@functools.cache
def modules() -> dict[str, Path]:
    """Files by module, as the folders show them; `wvq/__init__.py` and `__main__.py` only name the others."""
    files = {}
    for top in ("wvq", *ROOMS):
        for file in (ROOT / top).rglob("*.py"):
            parts = file.relative_to(ROOT / top).with_suffix("").parts
            name = ".".join(("wvq", *([] if top == "wvq" else [top]), *parts)).removesuffix(".__init__")
            files[name] = file
    return {name: file for name, file in files.items() if name not in ("wvq", "wvq.__main__")}


def room(module: str) -> str:
    """The folder that a module lies in, as a package."""
    is_package = modules()[module].stem == "__init__"
    return module if is_package else module.rpartition(".")[0]


def floor(module: str) -> str:
    """The floor that a module stands on."""
    return next(name for name in reversed(FLOORS) if name == room(module) or room(module).startswith(f"{name}."))


def imports(file: Path) -> set[str]:
    """Modules of wvq that a file imports anywhere, also within functions, but for type checking only."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    imported = set()
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
        imported |= {name for name in names if name.split(".")[0] == "wvq" and name != "wvq"}
    return imported


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Which modules each module imports."""
    known = modules()
    return {module: {name for name in imports(file) if name in known} for module, file in known.items()}


@has_sources
def test_folders_are_floors():
    """Each folder of wvq/ is a floor, and so is each that lies beside it: none is forgotten here."""
    folders = {f"wvq.{file.parent.name}" for file in (ROOT / "wvq").glob("*/*.py")} - {"wvq.assets"}
    assert folders | {"wvq"} | {f"wvq.{room}" for room in ROOMS if room != "configs"} == set(FLOORS)


@has_sources
def test_imports_run_down_the_floors():
    order = {name: level for level, name in enumerate(FLOORS)}
    for module, targets in arrows().items():
        for target in targets - {module}:
            there, here = floor(target), floor(module)
            assert order[there] <= order[here], f"{module} imports {target}, of a floor above its own"
            assert (there, here) not in APART, f"{module} imports {target}: neither floor knows the other"


@has_sources
def test_no_module_and_no_room_leads_back_to_itself():
    """Neither among modules nor among folders of one floor do imports run in a circle."""
    graph = arrows()
    between = {}
    for module, targets in graph.items():
        between.setdefault(room(module), set()).update(room(target) for target in targets)
    for edges in (graph, {name: targets - {name} for name, targets in between.items()}):
        graphlib.TopologicalSorter(edges).prepare()  # raises CycleError, with the circle


@has_sources
def test_the_walk_over_imports_sees_them():
    imported = imports(ROOT / "pipelines" / "parts.py")
    assert {"wvq.generator.models", "wvq.tokenizer.modeling", "wvq.errors"} <= imported
    assert {floor(module) for module in modules() if not module.startswith(("wvq.configs", "wvq.assets"))} == set(
        FLOORS
    )


@has_sources
def test_every_file_says_what_it_does():
    for module, file in modules().items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not tree.body or ast.get_docstring(tree), f"{module} has no docstring in its first line"
