"""The working folder of a task that can be stopped and go on: a file in it records what its contents depend on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from wvq.errors import ConfigError
from wvq.files.atomic import read_json, write_json
from wvq.files.names import IDENTITY_NAME
from wvq.files.stage_folder import differences, former_identity


def claim_work_folder(
    folder: str | Path, identity: Mapping, *, task: str, output: str, former: Mapping | None = None
) -> None:
    """Make the working folder of a task, or go on with what the same task has left there. One process calls it.

    Args:
        folder: new, empty, or left by a task of the same ``identity``. Hidden files in it do not count.
        identity: what the contents depend on; written to the folder's identity file.
        task: what messages call the task, such as ``an export``.
        output: what messages ask the user to choose another one of, such as ``output folder``.
        former: what earlier versions wrote instead of some values of ``identity``; accepted, with a warning.

    Raises:
        ConfigError: the folder holds something else, or what a task of another identity has left.
    """
    folder = Path(folder)
    expected, accepted = (json.loads(json.dumps(dict(values or {}))) for values in (identity, former))  # as read back
    file = folder / IDENTITY_NAME
    if not file.exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(f"{folder} holds other files; move them away, or choose another {output}")
        write_json(file, expected)
        return
    saved = read_json(file, ConfigError, f"{file} is missing")
    before = {name: saved.get(name) for name in expected}
    old = {name for name, value in accepted.items() if before[name] == value != expected[name]}
    if old:
        warnings.warn(former_identity(file), stacklevel=2)
    for name, (left, given) in differences(before | {name: expected[name] for name in old}, expected).items():
        raise ConfigError(
            f"{folder} was left by {task} with another {name} ({left!r}, now {given!r}); finish that one, remove the "
            f"folder or choose another {output}"
        )
