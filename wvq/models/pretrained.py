"""What both models share with transformers' PreTrainedModel: strict loading, checked saving and the weight hash."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from typing_extensions import Self, Unpack

from wvq.checks import PATH, one_of, or_null, require
from wvq.errors import CheckpointError, ConfigError, DataError, WVQError, first_line
from wvq.files.fingerprint import DataFingerprint
from wvq.files.names import FINGERPRINT_NAME, INDEX_NAME
from wvq.files.user_folders import expand_user
from wvq.files.weight_files import verify_weights, written_weights
from wvq.models.config import StrictConfig, read_config
from wvq.models.loading_options import (
    Device,
    LoadingOptions,
    refuse_others,
    take_device,
    take_dtype,
    take_hub_options,
)
from wvq.models.reading import DAMAGES, resolve_folder, whole_weights
from wvq.models.saving_options import (
    ModelPushOptions,
    SavingOptions,
    not_pushed,
    require_push_options,
    take_saving_options,
)
from wvq.precision import at_least_float32

Model = TypeVar("Model", bound="StrictPreTrainedModel")

# Default of a field of a model's output that is always given: transformers wants None for each, whatever its type.
GIVEN: Any = None
# Options of transformers that from_pretrained of a model passes on as they are.
_PASSED_ON = ("key_mapping", "disable_mmap")
# What the parts of transformers give each other.
_INTERNAL = ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs")


class StrictPreTrainedModel(PreTrainedModel):
    """A PreTrainedModel whose from_pretrained accepts exactly the weights it needs, or raises one clear line.

    Attributes:
        kind: what users call it.
        cast_when_loaded: load weights in the type of their file, and cast them then, by ``to``.
        data_fingerprint: the pictures that it was trained on, as its folder says; None where it does not.
    """

    kind: ClassVar[str] = "model"
    cast_when_loaded: ClassVar[bool] = False
    data_fingerprint: DataFingerprint | None = None

    if TYPE_CHECKING:  # the library's decorator hides what the method takes and returns

        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]

    config_class: type[StrictConfig]

    @classmethod
    def from_pretrained(  # type: ignore[override]  # by name alone: a model takes nothing but its config
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *,
        device: Device | None = None,
        dtype: torch.dtype | str | None = None,
        config: StrictConfig | str | os.PathLike[str] | None = None,
        attn_implementation: str | None = None,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Model:
        """Load config and weights from a folder or a Hub id, in eval mode.

        Args:
            pretrained_model_name_or_path: the folder or Hub id.
            device: where to put the weights, such as ``"cuda"``, or ``"auto"`` for the best there is; the CPU if None.
            dtype: a floating type or its name (``"bfloat16"``); ``"auto"`` and None leave the weights as saved.
            config: in place of the folder's own; or the folder or Hub id of one.
            attn_implementation: ``sdpa`` or ``eager``; for both, torch takes the fastest kernel.
            output_loading_info: return the model in a pair with what transformers reports of the loading.
            options: those of :class:`LoadingOptions`; ``key_mapping`` and ``disable_mmap`` as of transformers; fields
                of the config to change.

        Raises:
            ConfigError: an unknown option, one that asks for what is not done here, or a config that is given and that
                the weights do not fit.
            CheckpointError: missing, unexpected, wrongly shaped or damaged weights or config.
            DownloadError: a Hub id that cannot be reached.
        """
        options |= {"device": device, "dtype": dtype}
        hub_options, kind, target = take_hub_options(options), take_dtype(options), take_device(options)
        changes = cls.config_class.take_fields(options)
        passed_on = {name: options.pop(name) for name in _PASSED_ON if name in options}
        internal = {name: options.pop(name) for name in _INTERNAL if name in options}
        own = ("device", "dtype", "config", "attn_implementation", "output_loading_info", *_PASSED_ON)
        known = (*own, *LoadingOptions.__annotations__, *cls.config_class.fields())
        refuse_others(options, cls, known)
        require("attn_implementation", attn_implementation, or_null(one_of(("sdpa", "eager"))))

        folder = resolve_folder(pretrained_model_name_or_path, cls.kind, **hub_options)
        # AutoModel, which alone gives the last of these, has read the config that it gives from the folder.
        of_caller = bool(changes) or (config is not None and "adapter_kwargs" not in internal)
        if config is None:
            hint = f"; it is a pipeline: give {folder}/{cls.kind}" if (folder / INDEX_NAME).exists() else ""
            config = read_config(cls.config_class, folder, hint, **changes)
        elif not isinstance(config, StrictConfig):
            config = cls.config_class.from_pretrained(config, **changes)
        elif not isinstance(config, cls.config_class):
            raise ConfigError(f"config must be a {cls.config_class.__name__}, got a {type(config).__name__}")
        elif changes:
            raise ConfigError(f"config and {min(changes)} are both given; set {min(changes)} in the config")
        verify_weights(folder)
        if target is not None:
            passed_on["device_map"] = {"": target}
        if kind is not None and not cls.cast_when_loaded:
            passed_on["dtype"] = kind
        try:
            with whole_weights():
                loaded: Any = super().from_pretrained(  # a pair, though its type is that of the model
                    folder,
                    config=config,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # an error below, which names them
                    use_safetensors=True,
                    local_files_only=True,
                    **passed_on,
                )
            model, info = loaded
        except (ConfigError, torch.OutOfMemoryError):  # nothing is wrong with the files
            raise
        except (SafetensorError, *DAMAGES) as error:
            raise CheckpointError(
                f"{folder}: weights cannot be loaded ({first_line(error)}); save or download them again"
            ) from error
        if problem := _misfit(info):
            if of_caller:
                raise ConfigError(f"{folder}: weights do not fit the config given: {problem}")
            raise CheckpointError(f"{folder}: weights do not fit the config: {problem}")
        for name in cls._keep_in_fp32_modules_strict or ():  # transformers does so under 16-bit types alone
            model.get_submodule(name)._apply(at_least_float32)
        if cls.cast_when_loaded and kind is not None:
            model.to(kind)
        model.data_fingerprint = DataFingerprint.read(folder)
        return loaded if output_loading_info else model

    def save_pretrained(  # type: ignore[override]  # more options than these go by name
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **options: Unpack[SavingOptions],
    ) -> None:
        """Save as transformers does, with the SHA-256 of the weight files and the fingerprint of the data beside them.

        All files are written, or none.

        Args:
            save_directory: the folder.
            is_main_process: whether this process saves; the others do nothing.
            state_dict: the weights, if not the model's own.
            push_to_hub: upload the model too, by :meth:`push_to_hub`.
            options: size of a weight file, and the options of the upload.

        Raises:
            ConfigError: an unknown option, or one that asks for what is not done here.
            CheckpointError: the disk is full or cannot be written.
            DownloadError: the Hub cannot be reached.
        """
        shards, upload = take_saving_options(options, f"{type(self).__name__}.save_pretrained", push_to_hub)
        if not is_main_process:
            return
        folder = expand_user(save_directory, "save_directory", PATH)
        with written_weights(folder) as partial:
            super().save_pretrained(partial, state_dict=state_dict, **shards)
            if self.data_fingerprint is not None:
                self.data_fingerprint.save(partial)
        if self.data_fingerprint is None:  # that of another model may lie there
            (folder / FINGERPRINT_NAME).unlink(missing_ok=True)
        if push_to_hub:  # by way of this method again, so that the checksums go with the weights
            self.push_to_hub(upload.pop("repo_id", folder.name), **upload, **shards)

    def push_to_hub(self, repo_id: str, **options: Unpack[ModelPushOptions]) -> str:  # type: ignore[override]  # checked
        """Save the model and upload it to the Hugging Face Hub; returns the address of the commit.

        Args:
            repo_id: owner/name; the repository is made if it is not there.
            options: as of transformers.

        Raises:
            ConfigError: an unknown option.
            CheckpointError: the disk is full or cannot be written.
            DownloadError: the Hub cannot be reached.
        """
        require_push_options(options, f"{type(self).__name__}.push_to_hub", ModelPushOptions.__annotations__)
        try:
            # The library's decorator hides that it is a method.
            return str(super().push_to_hub(repo_id, **options))  # type: ignore[arg-type]
        except WVQError:
            raise
        except Exception as error:  # of many kinds
            raise not_pushed(repo_id, error) from error


def _misfit(info: dict[str, Any]) -> str | None:
    """The first kind of weights that do not fit a model, by what transformers reports of the loading."""
    for kind in ("missing", "unexpected", "mismatched"):
        keys = info.get(f"{kind}_keys") or ()
        # Those of another shape come with both shapes.
        names = sorted(
            key if isinstance(key, str) else f"{key[0]}, {tuple(key[1])} in place of {tuple(key[2])}" for key in keys
        )
        if names:
            return f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    return None


def require_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Check that an input of a model is where its weights are.

    Raises:
        DataError: it is on another device; the message calls it by ``name``.
    """
    if tensor.device != device:
        raise DataError(f"{name} are on {tensor.device}, the model is on {device}; move them with .to(model.device)")


def as_codes(codes: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Codes of any integer type as int64.

    Args:
        codes: of any shape.
        device: of the model that takes them.

    Raises:
        DataError: they are no integers, or on another device.
    """
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise DataError(f"codes must be integers, got {codes.dtype}")
    require_device("codes", codes, device)
    return codes.long()


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
