"""The checks of values: each kind with values at, inside and outside its bounds, and of other types."""

from types import SimpleNamespace

import pytest

from wvq.checks import FLAG, POSITIVE, SEED, TEXT, Checker, check_groups, integer, interval, number, or_null
from wvq.errors import ConfigError

INF, NAN = float("inf"), float("nan")


def refusal(check, value):
    """The message over a field ``x`` with this value; None where it is accepted."""
    try:
        check(Checker(SimpleNamespace(x=value), "group"))
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("check", "wanted", "accepted", "refused"),
    [
        (lambda c: c.each(integer(), "x"), "an integer of at least 1", [1, 10**30], [0, 1.0, True, "1", None]),
        (lambda c: c.each(or_null(integer(0)), "x"), "an integer of at least 0, or null", [0, None], [-1, "0"]),
        (lambda c: c.each(SEED, "x"), "an integer in [0, 2**32)", [0, 2**32 - 1], [-1, 2**32, 0.0, None]),
        (lambda c: c.each(number(), "x"), "a number of at least 0", [0, 0.0, 2.5], [-1e-9, NAN, INF, True, "1", None]),
        (lambda c: c.each(number(1), "x"), "a number of at least 1", [1.0], [0.99]),
        (lambda c: c.each(POSITIVE, "x"), "a number above 0", [1e-9, 3], [0, 0.0, NAN, INF, False, "1"]),
        (lambda c: c.each(interval("[0, 1)"), "x"), "in [0, 1)", [0, 0.5], [-0.1, 1, 1.0, NAN, False, "0", None]),
        (lambda c: c.each(interval("(0, 1]"), "x"), "in (0, 1]", [0.1, 1], [0, 1.1]),
        (lambda c: c.each(or_null(interval("(0, inf]")), "x"), "in (0, inf], or null", [INF, None], [0, NAN, "1"]),
        (lambda c: c.one_of("x", ("cosine", None)), "one of cosine, None", ["cosine", None], ["q", 3, ["q"]]),
        (lambda c: c.each(FLAG, "x"), "true or false", [True, False], [0, 1, "true", None]),
        (lambda c: c.each(TEXT, "x"), "a text", ["", "a"], [3, None, ["a"]]),
        (lambda c: c("x", "even", lambda value: value % 2 == 0), "even", [2], [3]),
    ],
)
def test_a_kind_of_check(check, wanted, accepted, refused):
    assert [refusal(check, value) for value in accepted] == [None] * len(accepted)
    assert [refusal(check, value) for value in refused] == [
        f"group.x must be {wanted}, got {value!r}" for value in refused
    ]


def test_a_choice_names_its_near_match():
    message = refusal(lambda c: c.one_of("x", ("constant", "cosine")), "cosin")
    assert message == "group.x must be one of constant, cosine (did you mean \"cosine\"?), got 'cosin'"


def test_the_first_field_that_is_wrong_is_named():
    with pytest.raises(ConfigError, match=r"^b must be"):
        Checker(SimpleNamespace(a=1, b=0, c=0)).each(integer(), "a", "b", "c")


def test_only_fields_that_can_be_checked_are_groups(monkeypatch):
    from dataclasses import dataclass, field

    @dataclass
    class Group:
        x: int = 1

        def check(self):
            Checker(self, "group").each(integer(), "x")

    @dataclass
    class Recipe:
        out: str = "here"
        free: dict = field(default_factory=dict)
        group: Group = field(default_factory=Group)

    check_groups(Recipe())
    with pytest.raises(ConfigError, match=r"^group\.x must be"):
        check_groups(Recipe(group=Group(0)))
