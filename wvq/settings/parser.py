"""The argument parser behind the command line and the recipe files: typed, with errors of one line."""

from __future__ import annotations

import os
import re
import warnings
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import fields
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace

from wvq.checks import PATH, as_number, is_integer
from wvq.errors import ConfigError, near_match
from wvq.files.stage_folder import former_fields, read_recipe
from wvq.files.user_folders import expand_user

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
        kinds = {option: _kind(action) for action in self._actions for option in action.option_strings}
        completed = list(words)
        for index in reversed([index for index, word in enumerate(words) if bool in _choices(kinds.get(word))]):
            following = words[index + 1] if index + 1 < len(words) else "--"
            if following.startswith("--") or (following.lower() not in _FLAGS and self._get_positional_actions()):
                completed.insert(index + 1, "true")
        return self.parse_args(completed)

    def _get_values(self, action: Action, arg_strings: list[str]) -> Any:
        """The values of an option on the command line, in the form of its type."""
        return as_written(super()._get_values(action, arg_strings), _kind(action))

    def _check_value_key(self, action: Action, value: Any, *others: Any, **more: Any) -> Any:
        """The library's check of a value from a recipe file, after it took the form of the field's type."""
        return super()._check_value_key(action, as_written(value, _kind(action)), *others, **more)

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
        if nested := re.search(r"\"(\w+)\": .*NestedArg\(key='([\w.]+)'", line):
            option, field = nested.groups()
            line = (
                f"unknown option {option}.{field}: this command takes --{option} alone; those of single stages, such "
                "as train-tokenizer, take more"
            )
        unknown = re.search(r"unrecognized arguments: --([\w.]+)|'([\w.]+)'(?: is not accepted)?$", line)
        if unknown and ("accept" in line or "unrecognized" in line):
            group = re.search(r"Group '([\w.]+)'", line)
            name = unknown.group(1) or unknown.group(2)
            name = f"{group.group(1)}.{name}" if group else name
            options = [s.lstrip("-") for a in self._actions for s in a.option_strings if a.dest != "help"]
            line = f"unknown option {name}{near_option(name, options)}"
        raise ConfigError(line)


def _kind(action: Action) -> Any:
    """The type of an option's values; None where it takes none."""
    return getattr(action, "_typehint", action.type)


def _choices(kind: Any) -> tuple[Any, ...]:
    """The types of a union; a type that is none as the only one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_MOST_DIGITS = 40  # beyond every range; 1e999999999 would fill the memory


def as_written(value: Any, kind: Any) -> Any:
    """A number or a flag, as people write it in a shell or in YAML, in the form of a type.

    A whole number may be written 100000, 1e5, 1E+5, 100_000 or 100000.0 (YAML 1.1 reads the second as a text), and a
    flag true, yes, on or 1.

    Args:
        value: of any type.
        kind: the type that an option or a field has.

    Returns:
        The value of that type; what cannot be read as one is unchanged, for the parser to refuse.
    """
    kinds = _choices(kind)
    numbers = {one for of_list in kinds if get_origin(of_list) is list for one in get_args(of_list)} & {int, float}
    if numbers and isinstance(value, str) and value.startswith("["):
        value = value.strip("[]").split(",")
    if list[str] in kinds:  # YAML reads a name such as 1 as a number
        if isinstance(value, str) and value.startswith("["):
            with suppress(yaml.YAMLError):
                value = yaml.safe_load(value)
        return [str(one) if is_integer(one, 0) else one for one in value] if isinstance(value, list) else value
    if isinstance(value, list):
        return [_scalar(one, numbers or set(kinds)) for one in value]
    return _scalar(value, set(kinds))


def _scalar(value: Any, kinds: Set[Any]) -> Any:
    value = as_number(os.fspath(value) if isinstance(value, os.PathLike) else value)
    text = str(value).strip()
    if (str in kinds and int not in kinds) or not isinstance(value, str | int | float) or not text:
        return value
    if bool in kinds:
        return _FLAGS.get(text.lower(), value)
    if int in kinds and not isinstance(value, bool):
        with suppress(InvalidOperation):
            number = Decimal(text)
            if number.is_finite() and number.adjusted() < _MOST_DIGITS and number == number.to_integral_value():
                return int(number)
    if float in kinds and isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


# What other programs call an option, by the last part of its name here.
_ELSEWHERE = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "epochs": "images",
    "num_epochs": "images",
    "num_train_epochs": "images",
    "max_steps": "images",
    "max_train_steps": "images",
    "steps": "images",
    "output": "out",
    "output_dir": "out",
    "outdir": "out",
    "dataset": "data.path",
    "data_dir": "data.path",
    "data_path": "data.path",
    "train_data_dir": "data.path",
    "resolution": "image_size",
    "res": "image_size",
    "workers": "num_workers",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "n": "num_images",
    "num_samples": "num_images",
    "resume_from_checkpoint": "resume",
}


def near_option(name: str, options: Sequence[str]) -> str:
    """``' (did you mean "train.learning_rate"?)'`` for an option that is unknown by this name, or an empty string.

    An option of the name that it has elsewhere comes first, then one with the same or a near last part of its name.
    """
    leaf = name.rpartition(".")[2]
    for wanted in (_ELSEWHERE.get(leaf, name), leaf):
        same = [option for option in options if option == wanted or option.endswith(f".{wanted}")]
        if same:  # the main group has the shortest name
            return f' (did you mean "{min(same, key=len)}"?)'
    if near := near_match(name, options):
        return near
    leaves = {option.rpartition(".")[2]: option for option in reversed(options)}
    return next((f' (did you mean "{leaves[one]}"?)' for one in get_close_matches(leaf, leaves, 1)), "")


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
    file = expand_user(name, "config", PATH)
    if file.is_file():
        read_recipe(file)  # the parser's own messages on broken YAML do not name the file
        return file
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
    kinds = {action.dest: _kind(action) for action in parser._actions}
    for name, value in (overrides or {}).items():
        group, _, key = name.rpartition(".")
        if isinstance(values.get(group), dict):  # free fields, such as those of a model; the model's config checks them
            values[group][key] = value
        elif name in values or name in parser.former_fields:
            values[name] = as_written(value, kinds.get(name))
        else:
            raise ConfigError(f"unknown option {name}{near_option(name, list(values.keys()))}")
    try:
        parser.validate(values)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return recipe_of(parser.build(values), recipe)
