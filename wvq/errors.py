"""The package's own exceptions: ValueErrors whose message is one line that names the field or file and the remedy."""

import difflib
from collections.abc import Iterable


class WVQError(ValueError):
    """Base of every error that this package raises on bad input."""


class ConfigError(WVQError):
    """A setting or recipe field has an unknown name, a wrong type or a value out of range."""


class DataError(WVQError):
    """A data set, folder or picture is missing, empty or unreadable."""


class UnreadablePictureError(DataError):
    """One picture cannot be decoded or shown as RGB; the others of its set may be sound."""


class CacheError(WVQError):
    """A code cache is missing, damaged or was made by another tokenizer."""


class CheckpointError(WVQError):
    """A model or pipeline folder has a missing, damaged or mismatching part."""


class DownloadError(WVQError):
    """A Hub id could not be reached or does not exist."""


def near_match(name: str, options: Iterable[object]) -> str:
    """Return ``' (did you mean "x"?)'`` for the option closest to ``name``, or an empty string when none is close."""
    matches = difflib.get_close_matches(str(name), [str(option) for option in options], n=1, cutoff=0.5)
    return f' (did you mean "{matches[0]}"?)' if matches else ""


def from_worker(error: WVQError) -> WVQError:
    """The error of a loader process without the traceback that PyTorch puts before its one line."""
    line = str(error).strip().splitlines()[-1]
    return type(error)(line.split(f"{type(error).__name__}: ", 1)[-1])


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
