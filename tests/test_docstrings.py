"""Every public name says what it is, every argument list is whole, and errors that are raised are named."""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(("wvq", *file.relative_to(ROOT).with_suffix("").parts)).replace("wvq.wvq.", "wvq.")
    for folder in ("wvq", "tokenizer", "generator", "pipelines", "eval")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if not file.stem.startswith("__")
]
SECTIONS = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises:", "Example::")


def public_names(module) -> dict[str, object]:
    """Functions, classes and methods that a module defines, by their dotted names."""
    names = {}
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            names[name] = value
        if inspect.isclass(value):
            for method in vars(value):
                if not method.startswith("_") and is_method(inspect.getattr_static(value, method)):
                    names[f"{name}.{method}"] = inspect.getattr_static(value, method)
    return names


def is_method(value) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)


def documentation(module, name: str) -> str:
    """The docstring of a name; that of the method which it overrides, where it has none of its own."""
    target = module
    for part in name.split("."):
        target = getattr(target, part) if not inspect.isclass(target) else inspect.getattr_static(target, part)
    own = inspect.getdoc(target)
    if own or "." not in name:
        return own or ""
    cls, method = name.split(".")
    for base in getattr(module, cls).__mro__[1:]:
        if method in vars(base) and (inherited := inspect.getdoc(vars(base)[method])):
            return inherited
    return ""


def section(text: str, title: str) -> str:
    """What stands between a section's title and the next one."""
    if title not in text:
        return ""
    rest = text.split(title, 1)[1]
    ends = [rest.index(other) for other in SECTIONS if other in rest]
    return rest[: min(ends)] if ends else rest


def function_of(value):
    if isinstance(value, property):
        return value.fget
    if inspect.isclass(value):
        return value.__init__ if "__init__" in vars(value) else None
    return getattr(value, "__func__", value)


def raised(function) -> set[str]:
    """Names of our errors that a function raises itself."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        return set()
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    return {name for name in names if re.fullmatch(r"(Config|Data|Cache|Checkpoint|Download)Error", name)}


@pytest.mark.skipif(not MODULES, reason="the sources of the package do not lie beside the tests")
def test_docstrings_are_whole():
    assert len(MODULES) > 100
    problems = [f"{name}: {problem}" for name in MODULES for problem in problems_of(importlib.import_module(name))]
    assert not problems, "\n".join(problems)


def problems_of(module) -> list[str]:
    """What the docstrings of a module leave out."""
    problems = [] if inspect.getdoc(module) else ["no docstring"]
    for public, value in public_names(module).items():
        text = documentation(module, public)
        if not text:
            problems.append(f"{public} has no docstring")
            continue
        function = function_of(value)
        if function is None:
            continue
        if "Args:" in text and inspect.getdoc(function if not inspect.isclass(value) else value):
            known = [p for p in inspect.signature(function).parameters if p not in ("self", "cls", "kwargs", "args")]
            if dataclasses.is_dataclass(value):  # those that it declares itself; its bases describe the others
                known = [p for p in known if p in vars(value).get("__annotations__", {})]
            described = section(text, "Args:") + section(text, "Attributes:")
            problems += [f"{public} does not describe {p}" for p in known if not re.search(rf"\b{p}\b", described)]
        if not inspect.isclass(value):
            for error in raised(function) - set(re.findall(r"\w+Error", text)):
                problems.append(f"{public} raises {error} and does not say so")
    return problems
