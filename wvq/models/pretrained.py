"""What both models share with transformers' PreTrainedModel: strict loading, checked saving and the weight hash."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import huggingface_hub
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from typing_extensions import Self

from wvq.errors import CheckpointError, ConfigError, DownloadError, first_line
from wvq.files.atomic import read_json
from wvq.files.fingerprint import DataFingerprint
from wvq.files.names import FINGERPRINT_NAME, INDEX_NAME
from wvq.files.user_folders import expand_user
from wvq.files.weight_files import verify_weights, written_weights
from wvq.models.config import StrictConfig

Config = TypeVar("Config", bound=StrictConfig)
Model = TypeVar("Model", bound="StrictPreTrainedModel")

# Default of a field of a model's output that is always given: transformers wants None for each, whatever its type.
GIVEN: Any = None
# Weights as safetensors only, and what configs, tokenizers of text encoders and model cards need.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md"]
# What transformers raises over values that it would never write into a file.
DAMAGES = (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError)


def take_hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of the Hub client out of a dict, and return them."""
    names = ("revision", "token", "cache_dir", "local_files_only")
    return {name: options.pop(name) for name in names if name in options}


def resolve_folder(path: str | os.PathLike[str], kind: str, **hub_options: Any) -> Path:
    """Return the local folder behind a path or a Hub id (downloaded through huggingface_hub).

    Args:
        path: the folder or Hub id.
        kind: what it holds, for the error.
        hub_options: for the Hub client.

    Raises:
        CheckpointError: a local path that does not exist or is no folder.
        DownloadError: a Hub id that cannot be reached or does not exist.
    """
    folder = expand_user(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file, not a {kind} folder")
    text = str(path)
    if Path(text).parent.is_dir() and text.count("/") == 1:
        raise CheckpointError(f"{text}: no such {kind} folder; check the path")
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise CheckpointError(f"{text}: no such {kind} folder, and not a Hub id of the form owner/name")
    try:
        return Path(huggingface_hub.snapshot_download(text, allow_patterns=_HUB_FILES, **hub_options))
    except Exception as error:  # the hub client raises many families: HTTP, offline, validation, OS
        raise DownloadError(
            f'"{text}" is no local folder and could not be fetched from the Hub '
            f"({type(error).__name__}: {first_line(error)}); "
            f"check the name and the network, or pass a local {kind} folder"
        ) from error


class StrictPreTrainedModel(PreTrainedModel):
    """A PreTrainedModel whose from_pretrained accepts exactly the weights it needs, or raises one clear line.

    Attributes:
        kind: what users call it.
        data_fingerprint: the pictures that it was trained on, as its folder says; None where it does not.
    """

    kind: ClassVar[str] = "model"
    data_fingerprint: DataFingerprint | None = None

    if TYPE_CHECKING:  # the library's decorator hides what the method takes and returns

        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]

    config_class: type[StrictConfig]

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        subfolder: str = "",
        **kwargs: Any,
    ) -> Model:
        """Load config and weights from a folder or a Hub id, in eval mode.

        Args:
            pretrained_model_name_or_path: the folder or Hub id.
            model_args: as in transformers.
            subfolder: where in the folder the model lies.
            kwargs: as in transformers; with ``output_loading_info`` the model comes in a pair with that information.

        Raises:
            CheckpointError: missing, unexpected, wrongly shaped or damaged weights or config.
            DownloadError: a Hub id that cannot be reached.
        """
        if pretrained_model_name_or_path is None:
            raise CheckpointError(f"from_pretrained needs the folder or Hub id of a {cls.kind}, got None")
        hub_options = take_hub_options(kwargs)
        folder = resolve_folder(pretrained_model_name_or_path, cls.kind, **hub_options) / subfolder
        if "config" not in kwargs:
            hint = f"; it is a pipeline: give {folder}/{cls.kind}" if (folder / INDEX_NAME).exists() else ""
            kwargs["config"] = read_config(cls.config_class, folder, hint)
        verify_weights(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            loaded: Any = super().from_pretrained(  # a pair, though its type is that of the model
                folder, *model_args, output_loading_info=True, use_safetensors=True, local_files_only=True, **kwargs
            )
            model, info = loaded
        except ConfigError:
            raise
        except (SafetensorError, *DAMAGES) as error:
            raise CheckpointError(
                f"{folder}: weights cannot be loaded ({first_line(error)}); save or download them again"
            ) from error
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if keys := sorted(map(str, info.get(problem) or ())):
                names = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
                raise CheckpointError(f"{folder}: weights do not fit the config: {len(keys)} {problem[:-5]} ({names})")
        model.data_fingerprint = DataFingerprint.read(folder)
        return loaded if wants_info else model

    def save_pretrained(  # type: ignore[override]  # more options than these go by name
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as transformers does, with the SHA-256 of the weight files and the fingerprint of the data beside them.

        All files are written, or none.

        Args:
            save_directory: the folder.
            is_main_process: whether this process saves; the others do nothing.
            state_dict: the weights, if not the model's own.
            push_to_hub: upload the folder too.
            kwargs: as in transformers.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        if not is_main_process:
            return
        hub = {name: kwargs.pop(name) for name in ("repo_id", "private", "commit_message") if name in kwargs}
        with written_weights(Path(save_directory)) as partial:
            super().save_pretrained(partial, state_dict=state_dict, **kwargs)
            if self.data_fingerprint is not None:
                self.data_fingerprint.save(partial)
        if self.data_fingerprint is None:  # that of another model may lie there
            (Path(save_directory) / FINGERPRINT_NAME).unlink(missing_ok=True)
        if push_to_hub:  # by way of this method again, so that the checksums go with the weights
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **hub)


def read_config(config_class: type[Config], folder: str | os.PathLike[str], hint: str = "") -> Config:
    """Read ``config.json`` of a model folder.

    Args:
        config_class: config class of the model.
        folder: folder of the model.
        hint: what to add if the file is missing.

    Raises:
        CheckpointError: the file is missing, is no JSON object, or belongs to another kind of model.
        ConfigError: a field is unknown or out of range.
    """
    file = Path(folder) / "config.json"
    values = read_json(file, CheckpointError, f"{file} is missing: {folder} holds no {config_class.model_type}{hint}")
    if values.get("model_type") != config_class.model_type:
        raise CheckpointError(
            f'{file} describes a model of type "{values.get("model_type")}", not "{config_class.model_type}"'
        )
    try:
        return config_class(**values)
    except ConfigError:
        raise
    except DAMAGES as error:
        raise CheckpointError(f"{file} holds an impossible value ({first_line(error)}); save it again") from error


@torch.no_grad()
def weights_hash(model: torch.nn.Module, without: tuple[str, ...] = ()) -> str:
    """SHA-256 over the names, types, shapes and bytes of all weights, in the order of their names.

    Args:
        model: the model.
        without: beginnings of names to leave out.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(without):
            continue
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def tensor_bytes(value: torch.Tensor) -> bytes:
    """The bytes of a tensor of any type on any device, in the order of its elements."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def model_hash(model: StrictPreTrainedModel, weights: str | None = None) -> str:
    """SHA-256 of all that a model's outputs depend on: its weights and :meth:`StrictConfig.identity`.

    Args:
        model: the model.
        weights: the hash of its weights, or of some of them; that of all if None.
    """
    fields = json.dumps(model.config.identity(), sort_keys=True)
    return hashlib.sha256(f"{weights or weights_hash(model)} {fields}".encode()).hexdigest()
