"""Options of other libraries that do nothing here: accepted where they ask for what is done anyway, or else refused."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from wvq.errors import ConfigError, near_match

SAFETENSORS = "weights are read and written as safetensors alone; leave it out"
ONE_SET = 'one set of weights is saved; leave it out, and cast them by dtype="bfloat16" or "float16" in loading'
EITHER = (True, False)


class Foreign(NamedTuple):
    """An option of other libraries that does nothing here.

    Attributes:
        remedy: what to do in place of giving it.
        harmless: values beside None that ask for nothing but what is done anyway.
    """

    remedy: str
    harmless: Collection[object] = ()


def refuse_options(
    options: Mapping[str, Any], caller: str, known: Iterable[str], foreign: Mapping[str, Foreign]
) -> None:
    """Check options that nobody has taken: those of other libraries pass where their values change nothing.

    Args:
        options: what is left of them.
        caller: what messages call the function.
        known: names of the options that it takes, for the near match.
        foreign: options of other libraries.

    Raises:
        ConfigError: one that is unknown, or asks for what is not done here.
    """
    for name, value in options.items():
        if name not in foreign:
            raise ConfigError(f'{caller} takes no "{name}"{near_match(name, known)}')
        # By identity: values of any kind may be given, arrays among them.
        if value is not None and not any(value is one for one in foreign[name].harmless):
            raise ConfigError(f"{name}={value!r} is not possible here: {foreign[name].remedy}")
