"""The one way to check the fields of a recipe, a group of settings, a model config or a file. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from wvq.errors import ConfigError, near_match

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Rule(NamedTuple):
    """A rule for a value, in words and as a test.

    Attributes:
        expected: in words, after "must be".
        holds: whether a value of any type is that.
    """

    expected: str
    holds: Callable[[Any], bool]


def integer(minimum: int = 1) -> Rule:
    """An integer of at least ``minimum``."""
    return Rule(f"an integer of at least {minimum}", lambda value: is_integer(value, minimum))


def number(minimum: float = 0) -> Rule:
    """A finite number of at least ``minimum``."""
    return Rule(f"a number of at least {minimum}", lambda value: is_number(value, minimum))


def interval(text: str) -> Rule:
    """A number in an interval such as ``[0, 1)`` or ``(0, inf]``."""
    low, high = map(float, text[1:-1].split(","))

    def holds(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        above = low <= value if text[0] == "[" else low < value
        return above and (value <= high if text[-1] == "]" else value < high)

    return Rule(f"in {text}", holds)


def at_most(limit: int) -> Rule:
    """A number up to a limit; comes after a rule that requires a number."""
    return Rule(f"at most {limit:,}", lambda value: value <= limit)


def one_of(options: Iterable[object]) -> Rule:
    """One of some names."""
    known = list(options)
    return Rule(f"one of {', '.join(map(str, known))}", known.__contains__)


def or_null(rule: Rule) -> Rule:
    """None, or what a rule allows."""
    return Rule(f"{rule.expected}, or null", lambda value: value is None or rule.holds(value))


POSITIVE = Rule("a number above 0", lambda value: is_number(value) and value > 0)
SEED = Rule("an integer in [0, 2**32)", lambda value: is_integer(value, 0) and value < 2**32)
# Of the first sample; those of the others follow, and a random generator's seed has 64 bits.
SAMPLE_SEED = Rule("an integer in [0, 2**63)", lambda value: is_integer(value, 0) and value < 2**63)
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str))
NAMES = Rule("a list of names", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))
FIELDS = Rule("fields by name", lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value))


class Checker:
    """Checks fields of one object; the first value that breaks its rule is a ConfigError that names the field.

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
            require(f"{self.prefix}{name}", getattr(self.settings, name), rule)

    def one_of(self, name: str, options: Iterable[object]) -> None:
        """Check that a field is one of some names; the message says which one is near.

        Raises:
            ConfigError: it is none of them.
        """
        rule = one_of(options)
        self(name, rule.expected + near_match(str(getattr(self.settings, name)), options), rule.holds)


def require(name: str, value: object, rule: Rule) -> None:
    """Check one value that is no field of an object.

    Raises:
        ConfigError: it breaks the rule; the message calls it by ``name``.
    """
    if not rule.holds(value):
        raise ConfigError(f"{name} must be {rule.expected}, got {value!r}")


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


def is_integer(value: object, minimum: int = 1) -> bool:
    """Whether a value is an integer, no boolean, of at least ``minimum``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value: object, minimum: float = 0.0) -> bool:
    """Whether a value is a finite number, no boolean, of at least ``minimum``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value < float("inf")


def as_list(value: object) -> object:
    """Tuples and lists as a new list; any other value unchanged, for a check to refuse."""
    return list(value) if isinstance(value, list | tuple) else value


def plain_number(value: Any) -> Any:
    """A number of numpy, or a tensor of no dims, as Python's number; anything else as it is, for a check to refuse."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
