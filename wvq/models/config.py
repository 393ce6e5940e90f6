"""StrictConfig, the base of both models' configs: fields with their ranges, and no key that is not a field."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedConfig
from typing_extensions import Self

from wvq.checks import Checker, Rule, as_list, interval, or_null
from wvq.errors import CheckpointError, ConfigError, first_line, near_match
from wvq.files.atomic import read_json
from wvq.models.loading_options import HubOptions, refuse_others, take_hub_options
from wvq.models.reading import DAMAGES, resolve_folder

Config = TypeVar("Config", bound="StrictConfig")

# Keys that transformers itself writes into a config.json beside the fields of its configs.
_LIBRARY_KEYS = {"_name_or_path", "name_or_path", "auto_map", "model_type", "torch_dtype", "_commit_hash"} | {
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
}


def option(
    default: Any,
    *rules: Rule,
    identity: bool = True,
    of_method: bool = False,
    former: Any = None,
    later: bool = False,
) -> Any:
    """Declares a field of a config, behind its name and type: ``window_size: int = option(65_536, integer())``.

    The result has no type, as that of any function that declares a field: it is the field that has one.

    Args:
        default: value where none is given.
        rules: what the value must be, checked in this order.
        identity: whether a trained model makes something else of its inputs under another value.
        of_method: whether the value means something to one kind of quantizer only, and must not pass to another one.
        former: the value that models had before there was the field, where that is not the default.
        later: the field came after version 0.1 was in use: saved configs lack it at its default, so that versions that
            do not know it read them.
    """
    metadata = {"rules": rules, "identity": identity, "of_method": of_method, "former": former, "later": later}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class StrictConfig(PreTrainedConfig):
    """A config that refuses unknown keys and values out of range; transformers stores the former silently.

    As a config of transformers it is a dataclass of keywords: a subclass lists its fields, each as an
    :func:`option`, and how they depend on each other in :meth:`complete`.

    Args:
        averaging_decay: the weights' provenance, of every model: decay of the moving average (EMA) over training that
            they are; 0 for the weights as trained; None if not known.

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """

    averaging_decay: float | None = option(None, or_null(interval("[0, 1)")), identity=False)

    def __post_init__(self, **kwargs: Any) -> None:
        for key in kwargs:
            if key not in _LIBRARY_KEYS:
                raise ConfigError(f'{type(self).__name__} has no field "{key}"{near_match(key, self.fields())}')
        check = Checker(self, type(self).__name__)
        for field in (field for field in dataclasses.fields(self) if "rules" in field.metadata):
            setattr(self, field.name, as_list(getattr(self, field.name)))
            for rule in field.metadata["rules"]:
                check.each(rule, field.name)
        self.complete(check)
        super().__post_init__(**kwargs)

    def complete(self, check: Checker) -> None:
        """Fill in what follows from other fields, and check that fields fit each other.

        Args:
            check: checks fields of this config, each of which is within its own range already.

        Raises:
            ConfigError: fields that do not fit each other.
        """

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the options of the Hub client go by name
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> Self:
        """Read the config of a model folder or Hub id.

        Args:
            pretrained_model_name_or_path: the folder or Hub id.
            options: those of :class:`HubOptions`; fields to change.

        Raises:
            ConfigError: an unknown option, or a value out of range.
            CheckpointError: the file is missing, damaged or of another kind of model.
            DownloadError: a Hub id that cannot be reached.
        """
        hub_options, changes = take_hub_options(options), cls.take_fields(options)
        known = (*HubOptions.__annotations__, *cls.fields())
        refuse_others(options, cls, known)
        folder = resolve_folder(pretrained_model_name_or_path, "model", ("config.json",), **hub_options)
        return read_config(cls, folder, **changes)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """As of transformers, whose AutoConfig calls it; fields among the keywords are checked as those of the dict."""
        return super().from_dict({**cls.as_saved(config_dict), **cls.take_fields(kwargs)}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As of transformers, which saves it; without fields of later versions at their default."""
        values = super().to_dict()
        for field in dataclasses.fields(self):
            if field.metadata.get("later") and values.get(field.name) == field.default:
                values.pop(field.name, None)
        return values

    @classmethod
    def as_saved(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values of a saved config, with what is meant by the fields that it lacks where a new config has another."""
        return values

    @classmethod
    def take_fields(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Take the fields of this config out of a dict of options."""
        names = [field.name for field in dataclasses.fields(cls) if "rules" in field.metadata]
        return {name: options.pop(name) for name in names if name in options}

    @classmethod
    def fields(cls) -> list[str]:
        """Names of the model's own fields, in the order in which they are declared."""
        return [field.name for field in cls._own()]

    @classmethod
    def fields_outside_identity(cls) -> list[str]:
        """Names of the fields that change nothing of what a trained model makes of its inputs.

        They are how it is trained, names, and hashes of other models.
        """
        return [field.name for field in cls._own() if not field.metadata["identity"]]

    @classmethod
    def fields_of_method(cls) -> list[str]:
        """Names of the fields that mean something to one kind of quantizer only."""
        return [field.name for field in cls._own() if field.metadata["of_method"]]

    def identity(self) -> dict[str, Any]:
        """The fields that, with the weights, fix what the model makes of its inputs, where they are not the default.

        A field that a later version adds leaves this unchanged where the model is as it was before.
        """
        default = type(self)()
        fields = [field for field in sorted(self._own(), key=lambda field: field.name) if field.metadata["identity"]]
        values = {field.name: getattr(self, field.name) for field in fields}
        changed = {name: value for name, value in values.items() if value != getattr(default, name)}
        former = {field.name: field.metadata["former"] for field in fields if field.metadata["former"] is not None}
        return {name: value for name, value in changed.items() if name not in former or value != former[name]}

    @classmethod
    def _own(cls) -> list[dataclasses.Field]:
        shared = {field.name for field in dataclasses.fields(StrictConfig)}
        return [field for field in dataclasses.fields(cls) if field.name not in shared]


def read_config(config_class: type[Config], folder: str | os.PathLike[str], hint: str = "", **changes: Any) -> Config:
    """Read ``config.json`` of a model folder.

    Args:
        config_class: of the model.
        folder: of the model.
        hint: what to add if the file is missing.
        changes: fields to change.

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
        values = config_class.as_saved(values)
        config = config_class(**values)
    except ConfigError:
        raise
    except DAMAGES as error:
        raise CheckpointError(f"{file} holds a value that cannot be ({first_line(error)}); save it again") from error
    return config_class(**{**values, **changes}) if changes else config
