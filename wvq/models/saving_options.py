"""What ``save_pretrained`` and ``push_to_hub`` take by name, as transformers has it, and the upload of a folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

import huggingface_hub
from typing_extensions import Unpack

from wvq.checks import Rule, is_integer, or_null, require
from wvq.errors import ConfigError, DownloadError, first_line
from wvq.models.options import EITHER, ONE_SET, SAFETENSORS, Foreign, refuse_options

FOREIGN_IN_SAVING = {
    "safe_serialization": Foreign(SAFETENSORS, (True,)),
    "save_function": Foreign(SAFETENSORS),
    "variant": Foreign(ONE_SET),
    "distributed_checkpoint": Foreign("weights are gathered, and saved as one process would", (False,)),
    "save_peft_format": Foreign("no adapters are saved; leave it out", EITHER),
    "save_original_format": Foreign("weights have one format; leave it out", EITHER),
}
SHARD_SIZE = Rule(
    'a number of bytes, or one with its unit such as "5GB"',
    lambda size: (
        is_integer(size)
        or (isinstance(size, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*[KMGT]B\s*", size, re.IGNORECASE) is not None)
    ),
)


class CommitOptions(TypedDict, total=False):
    """What an upload is to be on the Hub.

    Attributes:
        commit_message, commit_description: of the commit.
        create_pr: open a pull request in place of a commit.
    """

    commit_message: str | None
    commit_description: str | None
    create_pr: bool


class PushOptions(CommitOptions, total=False):
    """What ``push_to_hub`` takes beside the repository.

    Attributes:
        private: make the repository private, if it is made.
        token: for the Hub; the one that is stored on this machine if None.
        revision: branch to upload to, which is made if it is not there.
        max_shard_size: largest weight file, in bytes or as ``"5GB"``.
    """

    private: bool | None
    token: str | bool | None
    revision: str | None
    max_shard_size: int | str | None


class ModelPushOptions(PushOptions, total=False):
    """What ``push_to_hub`` of a model takes: ``tags`` of its card, too."""

    tags: list[str] | None


class SavingOptions(PushOptions, total=False):
    """What ``save_pretrained`` takes by name: beside ``max_shard_size`` it is for the upload alone.

    Attributes:
        repo_id: the repository; the name of the folder in one's own account if left out.
        safe_serialization: True; weights are written as safetensors.
        variant: None; one set of weights is saved.
    """

    repo_id: str | None
    safe_serialization: bool | None
    variant: None


def take_saving_options(
    options: Mapping[str, Any], caller: str, push_to_hub: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the options of ``save_pretrained``.

    Args:
        options: the :class:`SavingOptions` that are given.
        caller: what messages call the function.
        push_to_hub: whether it uploads.

    Returns:
        ``max_shard_size``, if it is given, and the options of the upload.

    Raises:
        ConfigError: one that is unknown, out of range, asks for what is not done here, or is for an upload that is not
            asked for.
    """
    upload = {name: value for name, value in options.items() if name in (*PushOptions.__annotations__, "repo_id")}
    others = {name: value for name, value in options.items() if name not in upload}
    refuse_options(others, caller, SavingOptions.__annotations__, FOREIGN_IN_SAVING)
    require("max_shard_size", upload.get("max_shard_size"), or_null(SHARD_SIZE))
    given = {name: value for name, value in upload.items() if value is not None}
    shards = {name: given.pop(name) for name in ("max_shard_size",) if name in given}
    asked = [name for name, value in given.items() if value]
    if asked and not push_to_hub:
        raise ConfigError(f"{min(asked)} is of the upload; give push_to_hub=True too, or leave it out")
    return shards, given


def require_push_options(options: Mapping[str, Any], caller: str, known: Collection[str]) -> None:
    """Check the options of ``push_to_hub``.

    Args:
        options: those that are given.
        caller: what messages call the function.
        known: names of those that it takes.

    Raises:
        ConfigError: one that is unknown, out of range, or asks for what is not done here.
    """
    others = {name: value for name, value in options.items() if name not in known}
    refuse_options(others, caller, known, FOREIGN_IN_SAVING)
    require("max_shard_size", options.get("max_shard_size"), or_null(SHARD_SIZE))


def upload_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    **commit: Unpack[CommitOptions],
) -> str:
    """Upload what a folder holds; returns the address of the commit. Arguments as of :class:`PushOptions`.

    Raises:
        DownloadError: the Hub cannot be reached, or refuses it.
    """
    try:
        api = huggingface_hub.HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, **commit))
    except Exception as error:  # the hub client raises many families: HTTP, offline, validation
        raise not_pushed(repo_id, error) from error


def not_pushed(repo_id: str, error: Exception) -> DownloadError:
    """What to raise over an upload that has failed."""
    return DownloadError(f'"{repo_id}" could not be pushed to the Hub ({first_line(error)})')
