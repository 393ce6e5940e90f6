"""The kinds of generators: which config reads the codes of a layout, and which one a folder holds."""

from __future__ import annotations

import math
import os
from pathlib import Path

from wvq.errors import CheckpointError
from wvq.files.atomic import read_json
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.depth.configuration import DepthTransformerConfig
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.models.config import read_config

# By kind of layout (wvq.data.layout).
CONFIGS: dict[str, type[GeneratorConfig]] = {
    "grid": ImageCodeTransformerConfig,
    "product": DepthTransformerConfig,
    "multi-scale": NextScaleTransformerConfig,
}
_DRAWN_IN_A_PASS = {"grid": "a code", "product": "the codes of a position", "multi-scale": "a scale"}
MODEL_TYPES = tuple(config.model_type for config in CONFIGS.values())


def read_generator_config(folder: str | os.PathLike[str]) -> GeneratorConfig:
    """The config of a generator's folder, of whichever kind.

    Raises:
        CheckpointError: the file is missing, is no JSON object, or belongs to no generator.
        ConfigError: a field is unknown or out of range.
    """
    return read_config(config_class_of(folder), folder)


def config_class_of(folder: str | os.PathLike[str]) -> type[GeneratorConfig]:
    """The config class of a generator's folder.

    Raises:
        CheckpointError: ``config.json`` is missing, is no JSON object, or belongs to no generator.
    """
    file = Path(folder) / "config.json"
    kind = read_json(file, CheckpointError, f"{file} is missing: {folder} holds no generator").get("model_type")
    for config in CONFIGS.values():
        if config.model_type == kind:
            return config
    raise CheckpointError(f'{file} describes a model of type "{kind}", not a generator: {", ".join(MODEL_TYPES)}')


def drawing_text(config: GeneratorConfig) -> str:
    """How a generator draws, in words, such as "a scale a pass, 10 passes for the 680 codes of a picture"."""
    layout = config.code_layout
    passes = len(layout["shapes"]) if layout["kind"] == "multi-scale" else math.prod(layout["shapes"][0][:2])
    drawn = _DRAWN_IN_A_PASS[layout["kind"]]
    return f"{drawn} a pass, {passes:,} passes for the {config.sequence_length:,} codes of a picture"
