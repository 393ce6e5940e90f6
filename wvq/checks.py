"""The one way to check the fields of a recipe, a group of settings, a model config or a file. Imports nothing heavy."""

from __future__ import annotations

import operator
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat, SupportsIndex

from wvq.errors import ConfigError, near_match

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def _unchanged(value: Any) -> Any:
    return value


class Rule(NamedTuple):
    """A rule for a value: in words, as a test, and the plain form that the value is brought to before.

    Attributes:
        expected: in words, after "must be".
        holds: whether a value of any type is that.
        plain: gives the one form of what can be written in several, such as Python's integer for NumPy's or 1e5; any
            other value unchanged, for ``holds`` to refuse. A ValueError holds the reason why there is none.
    """

    expected: str
    holds: Callable[[Any], bool]
    plain: Callable[[Any], Any] = _unchanged


def integer(minimum: int = 1) -> Rule:
    """An integer of at least ``minimum``."""
    return Rule(f"an integer of at least {minimum}", lambda value: is_integer(value, minimum), as_integer)


def number(minimum: float = 0) -> Rule:
    """A finite number of at least ``minimum``."""
    return Rule(f"a number of at least {minimum}", lambda value: is_number(value, minimum), as_number)


def interval(text: str) -> Rule:
    """A number in an interval such as ``[0, 1)`` or ``(0, inf]``."""
    low, high = map(float, text[1:-1].split(","))

    def holds(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        above = low <= value if text[0] == "[" else low < value
        return above and (value <= high if text[-1] == "]" else value < high)

    return Rule(f"in {text}", holds, as_number)


def at_most(limit: int) -> Rule:
    """A number up to a limit; comes after a rule that requires a number."""
    return Rule(f"at most {limit:,}", lambda value: value <= limit)


def one_of(options: Iterable[object]) -> Rule:
    """One of some names."""
    known = list(options)
    names = ", ".join(str(name) for name in known if name is not None)
    return Rule(f"one of {names}{', or null' if None in known else ''}", known.__contains__)


def or_null(rule: Rule) -> Rule:
    """None, or what a rule allows."""
    return Rule(
        f"{rule.expected}, or null",
        lambda value: value is None or rule.holds(value),
        lambda value: None if value is None else rule.plain(value),
    )


def list_of(rule: Rule, expected: str, count: int | None = None) -> Rule:
    """A list of one or more values, each of which a rule allows.

    Args:
        rule: that of each value.
        expected: the list in words.
        count: how many values it has; any number if None.
    """

    def holds(values: object) -> bool:
        if not isinstance(values, list) or len(values) != (count or max(1, len(values))):
            return False
        return all(map(rule.holds, values))

    def plain(values: object) -> object:
        values = as_list(values)
        return list(map(rule.plain, values)) if isinstance(values, list) else values

    return Rule(expected, holds, plain)


def is_integer(value: object, minimum: int = 1) -> bool:
    """Whether a value is an integer, no boolean, of at least ``minimum``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value: object, minimum: float = 0.0) -> bool:
    """Whether a value is a finite number, no boolean, of at least ``minimum``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value < float("inf")


def as_list(value: object) -> object:
    """Tuples and lists as a new list; any other value unchanged, for a check to refuse."""
    return list(value) if isinstance(value, list | tuple) else value


def _as_names(value: object) -> object:
    """A list of names, of which YAML and Python may hold some as integers."""
    names = as_list(value)
    return [str(name) if is_integer(name, 0) else name for name in names] if isinstance(names, list) else names


def as_number(value: object) -> object:
    """A number of NumPy, PyTorch or another library as Python's own; any other value unchanged."""
    if isinstance(value, bool | str) or _dims(value) or _is_boolean_of_a_library(value):
        return value
    if isinstance(value, SupportsIndex):
        with suppress(TypeError):  # a tensor has the method whatever it holds
            return operator.index(value)
    return float(value) if isinstance(value, SupportsFloat) else value


def as_integer(value: object) -> object:
    """A whole number, also as a float or of another library, as Python's integer; any other value unchanged."""
    plain = as_number(value)
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def _as_flag(value: object) -> object:
    return bool(value) if _is_boolean_of_a_library(value) and not _dims(value) else value


def _dims(value: object) -> int:
    """Dims of an array or tensor; 0 of anything else."""
    return len(getattr(value, "shape", ()))


def _is_boolean_of_a_library(value: object) -> bool:
    return str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _as_fields(value: object) -> object:
    """Numbers of other libraries in fields that are checked later as Python's own: a recipe is saved before."""
    if isinstance(value, dict):
        return {key: _as_fields(one) for key, one in value.items()}
    return list(map(_as_fields, value)) if isinstance(value, list | tuple) else as_number(value)


def locale_fault(text: str) -> str | None:
    """Why Python could not decode a name, an option or a prompt that is UTF-8: the locale; None if that is not why.

    Args:
        text: bytes that could not be decoded are surrogates in it.
    """
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8" or text.isascii():
        return None
    try:
        os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return None
    return f"it is UTF-8 text, which this locale takes as {encoding}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"


def _as_source(value: object) -> object:
    plain = _as_any_source(value)
    if isinstance(plain, str) and _SURROGATE.search(plain):  # a byte of a name in another encoding
        raise ValueError(locale_fault(plain) or "this name is not UTF-8 text, as saved recipes need; rename it")
    return plain


def _as_any_source(value: object) -> object:
    """A path with the user's home in place of ``~`` and without a slash at its end; a name or URL as it is."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        return value
    if not text.strip():
        raise ValueError("it is empty")
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    if text.lower().startswith("file:"):
        raise ValueError(f"write {re.sub('^file:(//)?', '', text, flags=re.IGNORECASE)}")
    if _URL.match(text):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError("this user has no home folder here; write ./~ for a name that begins so")
    plain = str(PurePath(expanded))
    if plain.startswith("~"):  # it was written ./~ and must not be taken for a home later
        return os.path.abspath(plain)
    return f"./{plain}" if expanded.startswith("./") and plain != "." else plain  # with ./ it is no Hub id


def _as_path(value: object) -> object:
    plain = _as_source(value)
    if isinstance(plain, str) and _URL.match(plain):
        raise ValueError("it is a URL; give a file or folder of this machine")
    return plain


_SURROGATE = re.compile("[\ud800-\udfff]")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")

POSITIVE = Rule("a number above 0", lambda value: is_number(value) and value > 0, as_number)
SEED = Rule("an integer in [0, 2**32)", lambda value: is_integer(value, 0) and value < 2**32, as_integer)
# Of the first sample; those of the others follow, and a random generator's seed has 64 bits.
SAMPLE_SEED = Rule("an integer in [0, 2**63)", lambda value: is_integer(value, 0) and value < 2**63, as_integer)
FLAG = Rule("true or false", lambda value: isinstance(value, bool), _as_flag)
TEXT = Rule("a text", lambda value: isinstance(value, str))
# A file or folder of this machine. Where it enters, it takes its one form: a function that is given it needs no other.
PATH = Rule("a path", lambda value: isinstance(value, str), _as_path)
# A file or folder, or a name by which something can be fetched, such as a Hub id.
SOURCE = Rule("a path or a name", lambda value: isinstance(value, str), _as_source)
# The same where nothing but this process has to read the name.
ANY_SOURCE = Rule("a path or a name", lambda value: isinstance(value, str), _as_any_source)
NAMES = Rule(
    "a list of names", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value), _as_names
)
FIELDS = Rule(
    "fields by name", lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value), _as_fields
)


class Checker:
    """Checks fields of one object, and leaves each in its plain form.

    The first value that breaks its rule is a ConfigError that names the field.

    Args:
        settings: the object.
        prefix: stands before the field's name in messages, such as ``train`` in ``train.batch_size``.
    """

    def __init__(self, settings: object, prefix: str = ""):
        self.settings, self.prefix = settings, f"{prefix}." if prefix else ""

    def __call__(self, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
        """Check one field by its own rule; the arguments are those of :class:`Rule`.

        Raises:
            ConfigError: it is something else.
        """
        self.each(Rule(expected, holds), name)

    def each(self, rule: Rule, *names: str) -> None:
        """Check these fields by one rule.

        Raises:
            ConfigError: one of them is something else.
        """
        for name in names:
            value = getattr(self.settings, name)
            plain = require(f"{self.prefix}{name}", value, rule)
            if plain is not value:
                object.__setattr__(self.settings, name, plain)  # also of a frozen dataclass

    def one_of(self, name: str, options: Iterable[object]) -> None:
        """Check that a field is one of some names; the message says which one is near.

        Raises:
            ConfigError: it is none of them.
        """
        rule = one_of(options)
        self(name, rule.expected + near_match(str(getattr(self.settings, name)), options), rule.holds)


def require(name: str, value: object, rule: Rule) -> Any:
    """Check one value that is no field of an object; returns its plain form.

    Raises:
        ConfigError: it breaks the rule; the message calls it by ``name``.
    """
    try:
        plain = rule.plain(value)
    except ValueError as reason:
        raise ConfigError(f"{name} must be {rule.expected}, got {value!r}: {reason}") from None
    if not rule.holds(plain):
        raise ConfigError(f"{name} must be {rule.expected}, got {value!r}")
    return plain


def check_groups(recipe: DataclassInstance) -> None:
    """Check each group of settings of a recipe: a field that has a dataclass with a ``check`` as its default.

    Raises:
        ConfigError: a group is of another class, be it a subclass, whose further fields the recipe does not have; or a
            value is out of range, and the message names the field with its group.
    """
    for field in fields(recipe):
        kind = field.default_factory
        if isinstance(kind, type) and hasattr(kind, "check"):
            group = getattr(recipe, field.name)
            if type(group) is not kind:
                raise ConfigError(f"{field.name} must be a {kind.__name__}, got a {type(group).__name__}")
            group.check()
