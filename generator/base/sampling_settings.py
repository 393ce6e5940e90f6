"""SamplingSettings: how codes are drawn. A setting is declared here, once; what takes or shows settings follows.

The fields give the options of the command line, the arguments of a pipeline's call, the sampling entries of its index,
jobs and results, presets and sweeps. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypedDict, TypeVar

from typing_extensions import Unpack

from wvq.checks import FLAG, POSITIVE, Checker, Rule, integer, interval, list_of, number, one_of
from wvq.errors import ConfigError, near_match
from wvq.generator.base.guidance import SCHEDULES, guidance_scales

FIXED_ROWS = 8  # a single picture takes as long as 8; more rows would cost it more, fewer would cost large batches more

Value = TypeVar("Value")


def setting(
    default: Value,
    help: str,
    rule: Rule,
    expected: str,
    choices: Sequence[str] = (),
    later: bool = False,
) -> Value:
    """A field of :class:`SamplingSettings`.

    Args:
        default: the value where none is given.
        help: its text in ``--help``.
        rule: what a value must be.
        expected: that in words, after "must be".
        choices: allowed names, of which an error shows the nearest.
        later: the setting came after version 0.1 was in use: jobs and results do not name it at its default, so that
            what was begun without it goes on.
    """
    return field(
        default=default,
        metadata={"help": help, "rule": rule, "expected": expected, "choices": choices, "later": later},
    )


_SHARES = list_of(number(), "two shares", 2)
_INTERVAL = Rule(
    "a rising pair",
    lambda value: isinstance(value, tuple) and _SHARES.holds(list(value)) and value[0] < value[1] <= 1,
    lambda value: tuple(_SHARES.plain(value)) if isinstance(value, list | tuple) else value,
)


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn. Guidance comes first, then temperature, top-k, top-p and min-p.

    Args:
        guidance_scale: s of u + s (c - u), c and u the logits with and without the condition; 1 is off. (Papers that
            write c + w (c - u) have w = s - 1.)
        temperature: divides the guided logits; 0 takes the likeliest code each time.
        top_k: keep the k likeliest codes; 0 keeps all.
        top_p: keep the likeliest codes up to this share of probability, in (0, 1].
        min_p: keep the codes of at least this share of the likeliest one's probability, in [0, 1]; 0 keeps all.
        guidance_schedule: ``constant``, or a rise from 1 to the scale over the positions: ``linear``, ``cosine``,
            ``power_cosine``; see :func:`wvq.generator.base.guidance.guidance_scales`.
        guidance_power: exponent of ``power_cosine``.
        guidance_interval: shares of the picture between which guidance is on, within [0, 1]; off outside.
        window: codes that are guessed and checked in one forward pass
            (:mod:`wvq.generator.next_code.speculative`): the same distribution, other pictures for a seed than without
            it; 0 draws one code a pass.
        passes: passes in which a picture is drawn, in an order of its seed, several codes at once
            (:mod:`wvq.generator.next_code.any_order`); for generators trained in random order. Given codes are all
            seen. 0 draws one code a pass, row by row.
        deterministic: the same picture to the bit whatever the batch, on one machine with one number of threads: all
            batches run in groups of a fixed number of rows (:mod:`wvq.generator.base.fixed_rows`), with a window one
            picture at a time.

    Raises:
        ConfigError: a value is out of range.
    """

    guidance_scale: float = setting(1.0, "1 is off; the pipeline's own if not given", number(), "at least 0 (1 is off)")
    temperature: float = setting(1.0, "0 takes the likeliest code", number(), "at least 0 (0 takes the likeliest code)")
    top_k: int = setting(0, "0 keeps all codes", integer(0), "an integer of at least 0 (0 keeps all codes)")
    top_p: float = setting(1.0, "in (0, 1]; 1 keeps all codes", interval("(0, 1]"), "in (0, 1] (1 keeps all codes)")
    min_p: float = setting(
        0.0,
        "share of the best code's probability; 0 keeps all",
        interval("[0, 1]"),
        "in [0, 1] (0 keeps all codes)",
    )
    guidance_schedule: str = setting(
        "constant",
        f"{', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}",
        one_of(SCHEDULES),
        f"one of {', '.join(SCHEDULES)}",
        choices=SCHEDULES,
    )
    guidance_power: float = setting(2.0, "of power_cosine", POSITIVE, "a number above 0")
    guidance_interval: tuple[float, float] = setting(
        (0.0, 1.0),
        "start and end of guidance, 0 to 1",
        _INTERVAL,
        "two shares of the picture, 0 <= start < end <= 1",
    )
    window: int = setting(
        0,
        "codes checked in one pass; 0 draws one code a pass",
        integer(0),
        "an integer of at least 0 (0 draws one code a pass)",
    )
    passes: int = setting(
        0,
        "passes a picture, each over several codes, in any order; 0 draws row by row",
        integer(0),
        "an integer of at least 0 (0 draws one code a pass, row by row)",
        later=True,
    )
    deterministic: bool = setting(
        False,
        "the same pictures to the bit whatever the batch; slower",
        FLAG,
        "true or false",
        later=True,
    )

    def __post_init__(self) -> None:
        check = Checker(self, "")
        for one in fields(self):
            rule, choices = one.metadata["rule"], one.metadata["choices"]
            expected = one.metadata["expected"] + near_match(str(getattr(self, one.name)), choices)
            check.each(rule._replace(expected=expected), one.name)

    def updated(self, **given: Unpack[SamplingOptions]) -> SamplingSettings:
        """These settings, with those of ``given`` that are not None in their place.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        known = [one.name for one in fields(self)]
        for name in given:
            if name not in known:
                raise ConfigError(f'"{name}" is no sampling setting{near_match(name, known)}')
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **changes)

    def identity(self) -> dict[str, Any]:
        """The settings as JSON values, by which a job or an evaluation is recognised."""
        values = json.loads(json.dumps(asdict(self)))
        names = [one.name for one in fields(self) if not one.metadata["later"] or values[one.name] != one.default]
        return {name: values[name] for name in names}

    @property
    def fixed_rows(self) -> int | None:
        """Pictures that always run together, of which some may be fillers; None if batches may have any size.

        A window moves on by what all pictures of its batch have guessed, so there each one runs alone.
        """
        return (1 if self.window else FIXED_ROWS) if self.deterministic else None

    def whole_batch(self, batch_size: int) -> int:
        """The smallest batch of at least ``batch_size`` pictures that fills all rows of its groups."""
        rows = self.fixed_rows or 1
        return -(-batch_size // rows) * rows

    def scales(self, length: int) -> list[float]:
        """Guidance scale at each of ``length`` positions."""
        return guidance_scales(
            self.guidance_scale, self.guidance_schedule, self.guidance_power, self.guidance_interval, length
        )


class SamplingOptions(TypedDict, total=False):
    """The fields of :class:`SamplingSettings` as keyword arguments: what is None or left out is unchanged.

    Type checkers cannot derive it from the class; a test compares the two.
    """

    guidance_scale: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    guidance_schedule: str | None
    guidance_power: float | None
    guidance_interval: tuple[float, float] | None
    window: int | None
    passes: int | None
    deterministic: bool | None
