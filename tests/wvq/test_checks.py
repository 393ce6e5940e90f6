"""The checks of values: each kind with values at, inside and outside its bounds, and of other types."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wvq.checks import (
    FIELDS,
    FLAG,
    NAMES,
    PATH,
    POSITIVE,
    SAMPLE_SEED,
    SEED,
    SOURCE,
    TEXT,
    Checker,
    check_groups,
    integer,
    interval,
    list_of,
    number,
    or_null,
    require,
)
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
        (
            lambda c: c.each(integer(), "x"),
            "an integer of at least 1",
            [1, 10**30, 1.0],
            [0, 1.5, True, "1", None, INF, NAN],
        ),
        (lambda c: c.each(or_null(integer(0)), "x"), "an integer of at least 0, or null", [0, None], [-1, "0"]),
        (lambda c: c.each(SEED, "x"), "an integer in [0, 2**32)", [0, 2**32 - 1, 0.0], [-1, 2**32, 0.5, None]),
        (lambda c: c.each(number(), "x"), "a number of at least 0", [0, 0.0, 2.5], [-1e-9, NAN, INF, True, "1", None]),
        (lambda c: c.each(number(1), "x"), "a number of at least 1", [1.0], [0.99]),
        (lambda c: c.each(POSITIVE, "x"), "a number above 0", [1e-9, 3], [0, 0.0, NAN, INF, False, "1"]),
        (lambda c: c.each(interval("[0, 1)"), "x"), "in [0, 1)", [0, 0.5], [-0.1, 1, 1.0, NAN, False, "0", None]),
        (lambda c: c.each(interval("(0, 1]"), "x"), "in (0, 1]", [0.1, 1], [0, 1.1]),
        (lambda c: c.each(or_null(interval("(0, inf]")), "x"), "in (0, inf], or null", [INF, None], [0, NAN, "1"]),
        (lambda c: c.one_of("x", ("cosine", None)), "one of cosine, or null", ["cosine", None], ["q", 3, ["q"]]),
        (lambda c: c.each(FLAG, "x"), "true or false", [True, False], [0, 1, "true", None]),
        (lambda c: c.each(TEXT, "x"), "a text", ["", "a"], [3, None, ["a"]]),
        (
            lambda c: c.each(list_of(integer(), "two integers", 2), "x"),
            "two integers",
            [[1, 2], (1, 2), [1.0, 2]],
            [[], [1], [1, 2, 3], [1, 2.5], [1, None], 1, "12", None],
        ),
        (lambda c: c.each(list_of(number(), "numbers"), "x"), "numbers", [[0.5], [1, 2]], [[], [-1], [NAN], ["1"], 3]),
        (
            lambda c: c.each(NAMES, "x"),
            "a list of names",
            [[], ["a"], ("a", "b"), [1, "b"]],
            [[-1], [1.5], [True], "a", None],
        ),
        (lambda c: c.each(PATH, "x"), "a path", ["a", Path("a"), "."], [3, None, b"a", ["a"]]),
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


# ---- plain forms


@pytest.mark.parametrize(
    "written",
    [3, 3.0, np.int64(3), np.int32(3), np.uint8(3), np.float32(3), np.array(3), torch.tensor(3), torch.tensor(3.0)],
)
def test_a_whole_number_becomes_pythons_integer(written):
    for rule in (integer(), SEED, SAMPLE_SEED, or_null(integer(0))):
        plain = require("x", written, rule)
        assert (plain, type(plain)) == (3, int)


@pytest.mark.parametrize(
    "written", [np.array([3]), torch.tensor([3]), np.bool_(True), torch.tensor(True), np.int64(0), 1e400]
)
def test_what_is_no_single_whole_number_is_no_integer(written):
    with pytest.raises(ConfigError, match="x must be an integer of at least 1"):
        require("x", written, integer())


def test_numbers_of_other_libraries_become_pythons():
    for written in (np.float64(0.5), np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)):
        plain = require("x", written, number())
        assert (plain, type(plain)) == (0.5, float)
    assert type(require("x", 1, number())) is int  # as it was written: configs are saved
    assert require("x", np.bool_(True), FLAG) is True
    assert require("x", {"a": np.int64(2), "b": [np.float32(0.5), "c"]}, FIELDS) == {"a": 2, "b": [0.5, "c"]}
    assert type(require("x", {"a": np.int64(2)}, FIELDS)["a"]) is int


def test_a_field_is_left_in_its_plain_form():
    settings = SimpleNamespace(a=np.int64(3), b=("x", "y"), c="here/")
    check = Checker(settings)
    check.each(integer(), "a")
    check.each(NAMES, "b")
    check.each(PATH, "c")
    assert settings == SimpleNamespace(a=3, b=["x", "y"], c="here")

    @dataclass(frozen=True)
    class Frozen:
        a: int

    frozen = Frozen(np.int64(3))
    Checker(frozen).each(integer(), "a")
    assert type(frozen.a) is int


# ---- paths


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("rule", [PATH, SOURCE])
def test_a_path_has_one_form(rule, home):
    forms = {
        "~": str(home),
        "~/x": f"{home}/x",
        Path("~/x"): f"{home}/x",
        "x/": "x",
        "x//y/": "x/y",
        "./x/": "./x",  # no Hub id
        ".": ".",
        "./": ".",
        "/": "/",
        "../x": "../x",
        "a/../b": "a/../b",  # a may be a link
        "with space": "with space",
        "pictures [v2]/*?{a,b}": "pictures [v2]/*?{a,b}",
        "$HOME/x": "$HOME/x",
        "x~": "x~",
        "owner/name": "owner/name",
    }
    for written, plain in forms.items():
        assert require("x", written, rule) == plain
        assert require("x", require("x", written, rule), rule) == plain


def test_a_name_that_begins_with_a_tilde_stays_one(home):
    plain = require("x", "./~x", PATH)
    assert plain == os.path.abspath("~x")
    assert require("x", Path(plain), PATH) == plain


@pytest.mark.parametrize("rule", [PATH, SOURCE])
@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("", "it is empty"),
        (" ", "it is empty"),
        ("file:///data/x", "write /data/x"),
        ("FILE:/data/x", "write /data/x"),
        ("a\0b", "it holds a NUL character"),
        ("caf\udce9", "this name is not UTF-8 text, as saved recipes need; rename it"),
        ("~no-such-user/x", "no home folder here; write ./~"),
    ],
)
def test_what_is_no_path_is_named_with_its_field(rule, written, why):
    with pytest.raises(ConfigError, match=r"^out must be a path") as caught:
        require("out", written, rule)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_url_is_a_source_and_no_path():
    assert require("x", "hf://datasets/a/b", SOURCE) == "hf://datasets/a/b"
    with pytest.raises(ConfigError, match="out must be a path, got 's3://b/x': it is a URL"):
        require("out", "s3://b/x", PATH)
