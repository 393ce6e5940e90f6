"""What a call of a pipeline takes by the names that diffusers gives it, as the pipeline's own seeds and numbers."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from wvq.checks import integer, require
from wvq.errors import ConfigError
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.models.options import Foreign, refuse_options
from wvq.pipelines.conditions import Requested

_NO_STEPS = "codes are drawn one after the other; leave it out"
_ENCODED = "texts are encoded by the pipeline; give them as prompt"
_NULL = "guidance leads away from the null condition that was trained; leave it out"
FOREIGN_IN_CALL = {
    "num_inference_steps": Foreign(_NO_STEPS),
    "timesteps": Foreign(_NO_STEPS),
    "strength": Foreign(_NO_STEPS),
    "eta": Foreign(_NO_STEPS),
    "negative_prompt": Foreign(_NULL),
    "negative_prompt_embeds": Foreign(_NULL),
    "prompt_embeds": Foreign(_ENCODED),
    "latents": Foreign("codes to start from are given as fixed_codes"),
    "callback_on_step_end": Foreign("what is shown of pictures while they are drawn is given as callback"),
    "return_dict": Foreign("the pictures are the images of what is returned; leave it out", (True,)),
}
_SEEDS = 2**63  # the range of seeds; those of generators have 64 bits


def updated_settings(settings: SamplingSettings, options: Mapping[str, Any], known: Iterable[str]) -> SamplingSettings:
    """The settings of a call: those of its pipeline, with the fields that are among the keywords of the call.

    Args:
        settings: of the pipeline.
        options: the keywords that the call does not take by itself.
        known: names of those that it takes, for the near match.

    Raises:
        ConfigError: one that is unknown, out of range, or asks for what is not done here.
    """
    names = [field.name for field in fields(settings)]
    others = {name: value for name, value in options.items() if name not in names}
    refuse_options(others, "a call of the pipeline", (*names, *known), FOREIGN_IN_CALL)
    given: Any = {name: value for name, value in options.items() if name in names}
    return settings.updated(**given)


def repeated(request: Requested, num_images: int | None, num_images_per_prompt: int | None) -> Requested:
    """Each condition as many times as diffusers calls ``num_images_per_prompt``.

    Raises:
        ConfigError: no integer of at least 1, or given beside ``num_images``.
    """
    if num_images_per_prompt is None:
        return request
    each = require("num_images_per_prompt", num_images_per_prompt, integer())
    if num_images is not None:
        raise ConfigError("num_images and num_images_per_prompt are given; give one of them")
    return request[[index for index in range(len(request)) for _ in range(each)]]


def seeds_of(seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """The seed of each picture of a call.

    Args:
        seed: of the first picture, checked; the next ones have the next seeds.
        generator: in its place: one, whose ``initial_seed()`` is the first picture's; or one a picture. Their states
            are neither used nor changed: the same generator gives the same pictures again.
        count: number of pictures.

    Raises:
        ConfigError: both are given, or something that is no generator, or another number of them.
    """
    if seed is not None and generator is not None:
        raise ConfigError("seed and generator are given; give one of them")
    if isinstance(generator, torch.Generator):
        seed = generator.initial_seed() % _SEEDS
    elif generator is not None:
        if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
            raise ConfigError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
        if len(generator) != count:
            raise ConfigError(
                f"generator has {len(generator)} entries for {count} pictures; give one, or one a picture"
            )
        return [one.initial_seed() % _SEEDS for one in generator]
    first = secrets.randbelow(2**31) if seed is None else seed
    return [first + index for index in range(count)]


def require_size(height: int | None, width: int | None, size: tuple[int, int]) -> None:
    """Check that the size that a call asks for is the one of the pictures.

    Args:
        height, width: as diffusers calls them, if they are given.
        size: height and width of the model's pictures.

    Raises:
        ConfigError: it is another one.
    """
    for name, given, own in (("height", height, size[0]), ("width", width, size[1])):
        if given not in (None, own):
            raise ConfigError(f"{name}={given!r}: this model draws {size[0]} x {size[1]} pixels; leave it out")
