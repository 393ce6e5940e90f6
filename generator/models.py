"""The generators' models by their configs: made anew, or loaded from a folder of whichever kind."""

from __future__ import annotations

import os
from typing import Any

from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.depth.modeling import DepthTransformer
from wvq.generator.kinds import config_class_of
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.next_scale.modeling import NextScaleTransformer

MODELS: dict[type[GeneratorConfig], type[CodeGenerator]] = {
    model.config_class: model for model in (ImageCodeTransformer, DepthTransformer, NextScaleTransformer)
}


def new_generator(config: GeneratorConfig) -> CodeGenerator:
    """A generator with weights drawn from PyTorch's random generator."""
    return MODELS[type(config)](config)


def load_generator(folder: str | os.PathLike[str], **options: Any) -> CodeGenerator:
    """The generator that a folder holds, in eval mode; options as of ``from_pretrained``.

    Raises:
        CheckpointError: missing or damaged files, or a folder that holds no generator.
    """
    return MODELS[config_class_of(folder)].from_pretrained(folder, **options)
