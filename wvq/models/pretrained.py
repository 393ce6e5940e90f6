"""What both models share with transformers' PreTrainedModel: strict configs, strict loading and the weight hash."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from wvq.checks import is_number
from wvq.errors import CheckpointError, ConfigError, DownloadError, first_line, near_match
from wvq.files.atomic import read_json
from wvq.files.names import INDEX_NAME
from wvq.files.user_folders import expand_user
from wvq.files.weight_files import verify_weights, written_weights

# Keys that transformers itself writes into a config.json beside the model's own.
_LIBRARY_KEYS = {"_name_or_path", "name_or_path", "auto_map", "model_type", "torch_dtype", "_commit_hash"} | {
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
}
# Weights as safetensors only, and what configs, tokenizers of text encoders and model cards need.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md"]
# What transformers raises over values that no file of its own would hold.
DAMAGES = (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError)


class StrictConfig(PreTrainedConfig):
    """A config that refuses unknown keys; transformers stores them silently, so that a typing error goes unseen.

    Attributes:
        outside_identity: fields that change nothing of what a trained model makes of its inputs: how it is trained, and
            names. Hashes of other models (``..._hash``) are outside too.
        averaging_decay: the weights' provenance, of every model: decay of the moving average (EMA) over training that
            they are; 0 for the weights as trained; None if not known.
    """

    outside_identity: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def fields(cls) -> set[str]:
        """Names of the model's own fields."""
        return set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}

    def identity(self) -> dict:
        """The fields that, with the weights, fix what the model makes of its inputs, where they are not the default.

        A field that a later version adds, with the former behaviour as its default, leaves this as it is.
        """
        plain, names = type(self)(), self.fields() - self.outside_identity
        values = {name: getattr(self, name) for name in sorted(names) if not name.endswith("_hash")}
        return {name: value for name, value in values.items() if value != getattr(plain, name)}

    def __init__(self, **kwargs):
        self.averaging_decay = kwargs.pop("averaging_decay", None)
        decay = self.averaging_decay
        self._require("averaging_decay", decay is None or (is_number(decay) and decay < 1), "in [0, 1), or null")
        own = self.fields()
        known = own | set(getattr(PreTrainedConfig, "__dataclass_fields__", {})) | _LIBRARY_KEYS
        for key in kwargs:
            if key not in known:
                raise ConfigError(f'{type(self).__name__} has no field "{key}"{near_match(key, own)}')
        super().__init__(**kwargs)

    def _require(self, field: str, condition: bool, wanted: str) -> None:
        if not condition:
            raise ConfigError(f"{type(self).__name__}.{field} must be {wanted}, got {getattr(self, field)!r}")


def take_hub_options(options: dict) -> dict:
    """Those of the options that are for the Hub client, taken out."""
    names = ("revision", "token", "cache_dir", "local_files_only")
    return {name: options.pop(name) for name in names if name in options}


def resolve_folder(path: str | Path, kind: str, **hub_options) -> Path:
    """Return the local folder behind a path or a Hub id (downloaded through huggingface_hub).

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
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES, **hub_options))
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
    """

    kind = "model"

    @classmethod
    def from_pretrained(cls, path, *args, subfolder: str = "", **kwargs):
        """Load config and weights from a folder or a Hub id, in eval mode.

        Raises:
            CheckpointError: missing, unexpected, wrongly shaped or damaged weights or config.
            DownloadError: a Hub id that cannot be reached.
        """
        hub_options = take_hub_options(kwargs)
        folder = resolve_folder(path, cls.kind, **hub_options) / subfolder
        if "config" not in kwargs:
            hint = f"; it is a pipeline: give {folder}/{cls.kind}" if (folder / INDEX_NAME).exists() else ""
            kwargs["config"] = read_config(cls.config_class, folder, hint)
        verify_weights(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(
                folder, *args, output_loading_info=True, use_safetensors=True, local_files_only=True, **kwargs
            )
        except ConfigError:
            raise
        except (SafetensorError, *DAMAGES) as error:
            raise CheckpointError(
                f"{folder}: weights cannot be loaded ({first_line(error)}); save or download them again"
            ) from error
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if keys := sorted(map(str, info.get(problem) or ())):
                shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
                raise CheckpointError(f"{folder}: weights do not fit the config: {len(keys)} {problem[:-5]} ({shown})")
        return (model, info) if wants_info else model

    def save_pretrained(
        self, save_directory, is_main_process: bool = True, push_to_hub: bool = False, **kwargs
    ) -> None:
        """As transformers saves a model, with the SHA-256 of the weight files beside them; whole or not at all.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        if not is_main_process:
            return
        hub = {name: kwargs.pop(name) for name in ("repo_id", "private", "commit_message") if name in kwargs}
        with written_weights(save_directory) as partial:
            super().save_pretrained(partial, **kwargs)
        if push_to_hub:  # by way of this method again, so that the checksums go with the weights
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **hub)


def read_config(config_class: type[StrictConfig], folder: Path, hint: str = "") -> StrictConfig:
    """Read ``config.json`` of a model folder.

    Args:
        config_class: of the model.
        folder: of the model.
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
        raise CheckpointError(f"{file} holds a value that cannot be ({first_line(error)}); save it again") from error


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
