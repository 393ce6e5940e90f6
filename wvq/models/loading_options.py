"""What every ``from_pretrained`` takes by name: the options of transformers and diffusers that mean something here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypedDict, TypeVar

import torch

from wvq.devices import named_device, usable_device
from wvq.errors import ConfigError, near_match
from wvq.models.options import EITHER, ONE_SET, SAFETENSORS, Foreign, refuse_options

Value = TypeVar("Value")
Device: TypeAlias = torch.device | str | int


class HubOptions(TypedDict, total=False):
    """Where the files of a model come from; of every ``from_pretrained``.

    Attributes:
        subfolder: of the folder or repository, in which the files lie.
        revision: branch, tag or commit of the repository.
        token: for the Hub; True takes the one that is stored on this machine.
        use_auth_token: an earlier name of ``token``.
        cache_dir: where downloads are kept.
        local_files_only: take what was downloaded before.
        force_download: download again what was downloaded before.
    """

    subfolder: str | None
    revision: str | None
    token: str | bool | None
    use_auth_token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    force_download: bool


class LoadingOptions(HubOptions, total=False):
    """What every ``from_pretrained`` of weights takes beside ``device`` and ``dtype``.

    Attributes:
        device_map: ``device`` by the name that transformers gives it, also as ``{"": device}``. A model is on one
            device.
        torch_dtype: an earlier name of ``dtype``.
        use_safetensors: True; weights are read from safetensors alone.
        low_cpu_mem_usage: True or False; weights are never in memory twice.
        trust_remote_code: False; no code that comes with a model is run.
        variant: None; one set of weights is saved, which ``dtype`` casts.
    """

    device_map: Device | Mapping[str, Device] | None
    torch_dtype: torch.dtype | str | None
    use_safetensors: bool | None
    low_cpu_mem_usage: bool | None
    trust_remote_code: bool | None
    variant: None


_NO_CODE = "no code that comes with a model is run; leave it out"
_NO_PART = "a pipeline has no such part; leave it out"
_OWN_PART = "make ImageGenerationPipeline(tokenizer, generator, text_encoder) of parts of your own"
_ONE_DEVICE = "a model is on one device as a whole; leave it out, and choose the device by device"
_REDUCED = 'a pipeline takes weights="int8" or "bf16" in its place'
FOREIGN_IN_LOADING = {
    "use_safetensors": Foreign(SAFETENSORS, (True,)),
    "from_tf": Foreign(SAFETENSORS, (False,)),
    "from_flax": Foreign(SAFETENSORS, (False,)),
    "use_onnx": Foreign(SAFETENSORS, (False,)),
    "gguf_file": Foreign(SAFETENSORS),
    "weights_only": Foreign(SAFETENSORS, (True,)),
    "variant": Foreign(ONE_SET),
    "trust_remote_code": Foreign(_NO_CODE, (False,)),
    "custom_pipeline": Foreign(_NO_CODE),
    "custom_revision": Foreign(_NO_CODE),
    "code_revision": Foreign(_NO_CODE),
    "safety_checker": Foreign(_NO_PART),
    "requires_safety_checker": Foreign(_NO_PART, EITHER),
    "feature_extractor": Foreign(_NO_PART),
    "scheduler": Foreign(_NO_PART),
    "vae": Foreign(_NO_PART),
    "transformer": Foreign(_NO_PART),
    "unet": Foreign(_NO_PART),
    "tokenizer": Foreign(_OWN_PART),
    "generator": Foreign(_OWN_PART),
    "text_encoder": Foreign(_OWN_PART),
    "quantization_config": Foreign(_REDUCED),
    "load_in_8bit": Foreign(_REDUCED, (False,)),
    "load_in_4bit": Foreign(_REDUCED, (False,)),
    "max_memory": Foreign(_ONE_DEVICE),
    "offload_folder": Foreign(_ONE_DEVICE),
    "offload_buffers": Foreign(_ONE_DEVICE, (False,)),
    "offload_state_dict": Foreign(_ONE_DEVICE, (False,)),
    "distributed_config": Foreign(_ONE_DEVICE),
    "device_mesh": Foreign(_ONE_DEVICE),
    "tp_plan": Foreign(_ONE_DEVICE),
    "tp_size": Foreign(_ONE_DEVICE),
    "state_dict": Foreign("make the model of its config, and give them to load_state_dict"),
    "ignore_mismatched_sizes": Foreign("weights that do not fit are an error; leave it out", (False,)),
    "proxies": Foreign("set HTTPS_PROXY in the environment"),
    "low_cpu_mem_usage": Foreign("weights are never in memory twice; leave it out", EITHER),
    "resume_download": Foreign("downloads are always resumed; leave it out", EITHER),
}


def take_hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the :class:`HubOptions` out of a dict of options; what :func:`resolve_folder` has by name.

    Raises:
        ConfigError: ``token`` and ``use_auth_token`` differ.
    """
    token = _either(options, ("token", "use_auth_token"), lambda name, value: value)
    names = HubOptions.__annotations__.keys() & options.keys()
    taken = {name: options.pop(name) for name in sorted(names)}
    return taken if token is None else {**taken, "token": token}


def take_dtype(options: dict[str, Any]) -> torch.dtype | None:
    """Take ``dtype`` or ``torch_dtype`` out of a dict of options; None for weights as they were saved.

    Raises:
        ConfigError: no floating type, or two that differ.
    """
    return _either(options, ("dtype", "torch_dtype"), as_dtype)


def take_device(options: dict[str, Any]) -> torch.device | None:
    """Take ``device`` or ``device_map`` out of a dict of options; None where neither is given.

    Raises:
        ConfigError: a device that cannot be used here, several devices, or two that differ.
    """
    return _either(options, ("device", "device_map"), as_device)


def _either(
    options: dict[str, Any], names: tuple[str, str], convert: Callable[[str, Any], Value | None]
) -> Value | None:
    """The value that an option has under either of two names."""
    given = {name: options.pop(name, None) for name in names}
    values = {name: convert(name, value) for name, value in given.items() if value is not None}
    if len(values) == 2 and len(set(values.values())) == 2:
        first, second = names
        raise ConfigError(f"{first}={given[first]!r} and {second}={given[second]!r} are given; give one of them")
    return next(iter(values.values()), None)


FLOATING_TYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


def as_dtype(name: str, value: torch.dtype | str) -> torch.dtype | None:
    """A floating type by itself or by its name, which ``torch.`` may precede; None for ``auto``.

    Args:
        name: of the option.
        value: of the option.

    Raises:
        ConfigError: anything else.
    """
    if value == "auto":
        return None
    dtype = FLOATING_TYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else value
    if dtype not in FLOATING_TYPES.values():
        near = near_match(value, FLOATING_TYPES) if isinstance(value, str) else ""
        raise ConfigError(f"{name} must be one of {', '.join(FLOATING_TYPES)}, got {value!r}{near}")
    return dtype


def as_device(name: str, value: Device | Mapping[str, Device]) -> torch.device:
    """A device that can be used here, by itself, its name or number, or as the only one of a map.

    ``auto`` is the best there is.

    Args:
        name: of the option.
        value: of the option.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, Mapping):
        devices = {as_device(name, device) for device in value.values()}
        if len(devices) != 1:
            raise ConfigError(f"{name}={value!r}: a model is on one device as a whole; give one, or leave it out")
        return devices.pop()
    return torch.device(usable_device()) if value == "auto" else named_device(value, name)


def refuse_others(
    options: Mapping[str, Any], owner: type, known: Iterable[str], foreign: Mapping[str, Foreign] | None = None
) -> None:
    """Check the options of a ``from_pretrained`` that nobody has taken.

    Args:
        options: what is left of them.
        owner: the class.
        known: names of the options that it takes, for the near match.
        foreign: options of other libraries beside those of every loading.

    Raises:
        ConfigError: one that is unknown, or asks for what is not done here.
    """
    refuse_options(options, f"{owner.__name__}.from_pretrained", known, {**FOREIGN_IN_LOADING, **(foreign or {})})
