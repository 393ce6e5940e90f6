"""The argument parser behind the command line and the recipe files: typed, with errors of one line."""

from __future__ import annotations

import os
import re
import warnings
from argparse import SUPPRESS
from collections.abc import Iterable, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser, Namespace

from wvq.errors import ConfigError, near_match
from wvq.files.stage_folder import former_fields, read_recipe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Recipe = TypeVar("Recipe", bound="DataclassInstance")


class Parser(ArgumentParser):
    """A jsonargparse parser that raises ConfigError, and names the near match of an unknown option.

    Args:
        program: the command, for its help.
        description: what it does, for its help.

    Attributes:
        former_fields: of the recipe, see :func:`wvq.files.stage_folder.former_fields`.
    """

    def __init__(self, program: str | None = None, description: str | None = None):
        # Without abbreviations: --minute would be taken for --minutes, and a wrong name not be noticed.
        super().__init__(prog=program, description=description, exit_on_error=True, allow_abbrev=False)
        self.former_fields: dict[str, Any] = {}

    def add_recipe(self, recipe: type[DataclassInstance], skip: Iterable[str] = ()) -> None:
        """Add the fields of a recipe as options, and hidden, those that it had in an earlier version.

        Args:
            recipe: the class.
            skip: fields that are added elsewhere.
        """
        self.add_class_arguments(recipe, skip=set(skip))
        self.former_fields = former_fields(recipe)
        for name in self.former_fields:
            self.add_argument(f"--{name}", type=float | str | None, default=SUPPRESS, help=SUPPRESS)

    def parse(self, words: Sequence[str]) -> Namespace:
        """Values by option, those of recipe files included; a switch without a value (``--force-reference``) is on.

        Raises:
            ConfigError: the arguments or a recipe file are wrong.
        """
        for index, word in enumerate(words):
            name, given, value = word.removeprefix("--").partition("=")
            value = value if given else next(iter(words[index + 1 : index + 2]), "")
            if word.startswith("--") and name == "config":
                self._check_groups(value)
            elif word.startswith("--") and name in self._group_names() and os.path.isfile(value):
                _refuse_class(value, {name: read_recipe(value)})
        switches = {s for a in self._actions if getattr(a, "_typehint", None) is bool for s in a.option_strings}
        completed = list(words)
        for index in reversed([index for index, word in enumerate(words) if word in switches]):
            if index + 1 == len(words) or words[index + 1].startswith("--"):
                completed.insert(index + 1, "true")
        return self.parse_args(completed)

    def build(self, values: Namespace) -> Namespace:
        """The values, with each group of settings as its dataclass.

        Raises:
            ConfigError: a group holds something other than fields.
        """
        for name, default in self.former_fields.items():
            if name in values and (value := values.pop(name)) != default:
                warnings.warn(f"{name} {value} is a setting of the tokenizer and does nothing here", stacklevel=2)
        for name in self._group_names():
            if not isinstance(values.get(name), Namespace | None):
                self.error(f"{name} must hold fields by name, got {values[name]!r}")
        return self.instantiate(values)

    def _group_names(self) -> Iterable[str]:
        return self.groups or ()

    def _check_groups(self, recipe: str) -> None:
        """Refuse a recipe that names a class or another recipe: jsonargparse imports the class, which runs its module.

        It does so for a ``class_path`` anywhere, by a dotted name and within free fields too.
        """
        if not os.path.isfile(recipe):  # a long value is no error, as for pathlib
            return  # jsonargparse reports it
        values = read_recipe(recipe)
        if "config" in values:
            raise ConfigError(f"recipe {recipe}: config is no field; a recipe cannot load another one")
        _refuse_class(recipe, values)
        for name in self._group_names():
            group: Any = values
            for part in name.split("."):
                group = group.get(part, {}) if isinstance(group, dict) else group
            if not isinstance(group, dict):
                raise ConfigError(f"recipe {recipe}: {name} must hold fields by name, got {group!r}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a message of the parser as one line.

        Raises:
            ConfigError: always.
        """
        line = " ".join(str(message).split())
        line = re.sub(r"Expected a <class '(\w+)'>", r"expected \1", line).replace('Parser key "', '"')
        if union := re.search(r"Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: (.*)$", line):
            types = re.sub(r"<class '(\w+)'>", r"\1", union.group(1)).replace("NoneType", "null").replace(", ", " or ")
            line = f"{line[: union.start()]}expected {types}. Got value: {union.group(2)}"
        unknown = re.search(r"unrecognized arguments: --([\w.]+)|'([\w.]+)'(?: is not accepted)?$", line)
        if unknown and ("accept" in line or "unrecognized" in line):
            group = re.search(r"Group '([\w.]+)'", line)
            name = unknown.group(1) or unknown.group(2)
            name = f"{group.group(1)}.{name}" if group else name
            options = [s.lstrip("-") for a in self._actions for s in a.option_strings if a.dest != "help"]
            line = f"unknown option {name}{near_match(name, options)}"
        raise ConfigError(line)


def _refuse_class(recipe: str, values: dict[str, Any]) -> None:
    if place := _class_named(values):
        raise ConfigError(f"recipe {recipe}: {place} must hold fields by name, and no class")


def _class_named(values: Any, place: str = "") -> str | None:
    """Dotted name of the first field that names a class instead of holding fields; None if there is none."""
    if isinstance(values, list):
        return next(filter(None, (_class_named(value, place) for value in values)), None)
    if not isinstance(values, dict):
        return None
    for key, value in values.items():
        name = f"{place}.{key}".lstrip(".")
        if "class_path" in str(key).split("."):
            return name.partition(".class_path")[0]
        if inner := _class_named(value, name):
            return inner
    return None


def shipped_recipes() -> dict[str, Path]:
    """Names (``openmoji_32/tokenizer``) and files of the recipes in the package."""
    root = Path(str(resources.files("wvq.configs")))
    files = [file for file in sorted(root.glob("*/*.yaml")) if file.parent.name != "accelerate"]  # no recipes
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def recipe_file(name: str | Path) -> Path:
    """A recipe's file: a path, or the name of a shipped one with or without ``configs/`` and ``.yaml``.

    Raises:
        ConfigError: neither, or no recipe.
    """
    if Path(name).is_file():
        read_recipe(name)  # the parser's own messages on broken YAML do not name the file
        return Path(name)
    shipped = shipped_recipes()
    short = str(name).removesuffix(".yaml").removeprefix("configs/")
    if short not in shipped:
        raise ConfigError(f"recipe {name}: no such file{near_match(short, shipped)}; shipped: {', '.join(shipped)}")
    return shipped[short]


def recipe_of(values: Namespace, recipe: type[Recipe], **given: Any) -> Recipe:
    """The recipe with its fields from the values, except those given by name."""
    return recipe(**{field.name: values[field.name] for field in fields(recipe) if field.name not in given}, **given)


def load_recipe(recipe: type[Recipe], file: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe from YAML, with some fields set by dotted name.

    Raises:
        ConfigError: no such file, an unknown field, or a value of the wrong type.
    """
    parser = Parser()
    parser.add_argument("--config", action="config")
    parser.add_recipe(recipe)
    path = recipe_file(file)
    try:
        values = parser.parse([f"--config={path}"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for name, value in (overrides or {}).items():
        group, _, key = name.rpartition(".")
        if isinstance(values.get(group), dict):  # free fields, such as those of a model; the model's config checks them
            values[group][key] = value
        elif name in values or name in parser.former_fields:
            values[name] = value
        else:
            raise ConfigError(f"unknown option {name}{near_match(name, list(values.keys()))}")
    try:
        parser.validate(values)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return recipe_of(parser.build(values), recipe)
