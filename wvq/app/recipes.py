"""The recipe of the quick start. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from wvq.checks import PATH, SEED, SOURCE, Checker, interval, one_of, or_null
from wvq.settings.data import FITS


@dataclass
class QuickstartRecipe:
    """Both stages on a small set of pictures, with a report.

    Args:
        out: run folder; a pipeline that from_pretrained loads, with ``report.html``.
        data: ``openmoji``, or a folder of your own pictures (class folders, or metadata.jsonl with captions).
        minutes: wall-clock bound on the training steps of both stages together; evaluation adds about a minute, and
            with your own pictures the search for sampling settings about a tenth of it.
        seed: start of weights, data order and samples.
        fit: ``crop`` or ``pad`` for pictures that are not square; chosen by their shapes and borders if None.
    """

    out: str = "runs/openmoji"
    data: str = "openmoji"
    minutes: float = 6.7
    seed: int = 0
    fit: str | None = None

    def check(self) -> None:
        """Raise ConfigError, naming the field, if a value is out of range."""
        check = Checker(self)
        check.each(PATH, "out")
        check.each(SOURCE, "data")
        check.each(interval("(0, inf]"), "minutes")
        check.each(SEED, "seed")
        check.each(or_null(one_of(FITS)), "fit")
