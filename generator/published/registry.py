"""The generators that other projects have published, by family."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch

from wvq.errors import ConfigError, near_match
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.published import llamagen, var
from wvq.generator.published.reading import Tokenizer
from wvq.models.published import PublishedOptions

Reader = Callable[[MutableMapping[str, torch.Tensor], str, PublishedOptions, Tokenizer | None], CodeGenerator]

GENERATORS: dict[str, Reader] = {"llamagen": llamagen.read, "var": var.read}


def read_generator(
    family: str,
    state: MutableMapping[str, torch.Tensor],
    source: str,
    options: PublishedOptions,
    tokenizer: Tokenizer | None = None,
) -> CodeGenerator:
    """The generator of another project's file, float32, in eval mode.

    Args:
        family: a key of ``GENERATORS``.
        state: the file's weights by name, which are taken out of it one by one.
        source: the file, for errors.
        options: what the weights do not show.
        tokenizer: the published tokenizer whose codes it draws, which the generator's config then names. Without one,
            LlamaGen's generators need the ``image_size``, and VAR's cannot be read.

    Raises:
        CheckpointError: another model, a damaged file, or sizes that neither the weights nor the options show.
        ConfigError: an unknown family, or sizes that do not fit each other.
    """
    if family not in GENERATORS:
        hint = f"{near_match(family, GENERATORS)}; those of {', '.join(GENERATORS)} are"
        raise ConfigError(f'no generators of "{family}" are known{hint}')
    generator = GENERATORS[family](state, source, options, tokenizer)
    if tokenizer is not None:
        generator.config.tokenizer_hash = tokenizer.codes_hash()
    return generator
