"""A sampling setting over a range of values, such as ``guidance_scale=1:4:0.5``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from wvq.errors import ConfigError, near_match
from wvq.generator.base.sampling_settings import SamplingSettings

MOST = 100  # values of a sweep


def parse_sweep(text: str) -> tuple[str, list[float]]:
    """Field and values of a range such as ``field=first:last:step``, the last one included.

    Raises:
        ConfigError: another form, an unknown field, or no values that the field may have.
    """
    field, equals, span = text.partition("=")
    numeric = [
        f.name for f in fields(SamplingSettings) if isinstance(f.default, int | float) and f.type not in (bool, "bool")
    ]
    if field not in numeric:
        raise ConfigError(f'sweep: "{field}" is no number among the sampling settings{near_match(field, numeric)}')
    try:
        first, last, step = map(float, span.split(":"))
    except ValueError:
        raise ConfigError(f"sweep must read {field}=first:last:step, such as {field}=1:4:0.5, not {text}") from None
    if not equals or not step > 0 or not first <= last or (last - first) / step >= MOST:
        raise ConfigError(
            f"sweep {text}: the step must be above 0, the first value at most the last, with at most {MOST} values"
        )
    count = int((last - first) / step + 1 + 1e-9)
    values = [round(first + number * step, 10) for number in range(count)]
    integer = isinstance(getattr(SamplingSettings(), field), int)
    if integer and any(value != int(value) for value in values):
        raise ConfigError(f"sweep: {field} takes whole numbers")
    values = [int(value) if integer else value for value in values]
    for value in values:
        changes: dict[str, Any] = {field: value}
        replace(SamplingSettings(), **changes)  # refuses what the field may not have
    return field, values
