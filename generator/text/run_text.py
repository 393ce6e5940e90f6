"""What a training run records of its text encoder, so that it is resumed with the same one only."""

from __future__ import annotations

from pathlib import Path

from wvq.errors import ConfigError
from wvq.files.atomic import read_json, write_json
from wvq.generator.text.encoder import TextEncoder

NAME = "text_encoder.json"  # in the run's training folder


def run_padding(training: Path) -> str:
    """Where a run that is to be resumed pads its captions: ``left`` if its version did not record that yet."""
    return _recorded(training).get("text_padding", "left")


def keep_text_encoder(training: Path, encoder: TextEncoder) -> None:
    """Record the fields that identify a new run's encoder."""
    write_json(training / NAME, encoder.config_fields())


def require_same_encoder(training: Path, encoder: TextEncoder, source: str) -> None:
    """Check that a resumed run has the encoder that it was started with, if that was recorded.

    Raises:
        ConfigError: another one than that of ``source`` when the run was started.
    """
    expected = _recorded(training).get("text_encoder_hash")
    if expected is not None and expected != encoder.identity():
        raise ConfigError(
            f"condition.text_encoder: {source} is not what it was when the run in {training.parent} was started; "
            "restore it, or start a new run in another folder"
        )


def _recorded(training: Path) -> dict:
    file = training / NAME
    return read_json(file, ConfigError, f"{file} is missing") if file.is_file() else {}
