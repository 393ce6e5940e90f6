"""Fetches files that other projects have published on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub

from wvq.errors import ConfigError, DownloadError, first_line
from wvq.pipelines.published.catalogue import PublishedFile


def fetch(file: PublishedFile, part: str, **hub_options: Any) -> Path:
    """A published file on this machine, downloaded unless it was before.

    Args:
        file: the file.
        part: ``tokenizer`` or ``generator``, for errors.
        hub_options: for the Hub client.

    Raises:
        ConfigError: it is not known how to download it.
        DownloadError: it cannot be reached.
    """
    if file.name is None or not file.is_on_hub:
        raise ConfigError(f"{part}: download it by hand from {file}, and give it to wvq import by --{part}")
    try:
        return Path(huggingface_hub.hf_hub_download(file.place, file.name, **hub_options))
    except Exception as error:  # the hub client raises many families: HTTP, offline, validation, OS
        raise DownloadError(
            f"{file.name} of {file.place} could not be fetched from the Hub ({type(error).__name__}: "
            f"{first_line(error)}); check the network, or download it by hand and give it to wvq import by --{part}"
        ) from error
