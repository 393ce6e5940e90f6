"""Writes a pipeline as the files that LlamaGen's own programs read."""

from __future__ import annotations

from pathlib import Path

import torch

from wvq.checks import PATH
from wvq.errors import CheckpointError, ConfigError
from wvq.files.atomic import whole_file
from wvq.files.user_folders import expand_user
from wvq.generator.published.writing import write_llamagen
from wvq.pipelines.parts import PipelineParts
from wvq.tokenizer.published.registry import write_tokenizer

# Counts of codes in training, which LlamaGen's programs do not load a tokenizer without.
_COUNTS = {"quantize.codebook_used": torch.zeros(65_536)}


def export_llamagen(pipeline: PipelineParts, out: str | Path, tokenizer_out: str | Path | None = None) -> dict:
    """Write a pipeline's generator, and its tokenizer where asked for, in LlamaGen's form.

    Args:
        pipeline: the pipeline.
        out: new file of the generator, ``.pt`` or ``.safetensors``.
        tokenizer_out: new file of the tokenizer, ``.pt``.

    Returns:
        The arguments of LlamaGen's ``Transformer`` (``ModelArgs``) that take the weights, by name.

    Raises:
        ConfigError: LlamaGen's networks cannot be these models, with the reason; or a file that is there already or
            has another ending.
        CheckpointError: a file cannot be written.
    """
    file = _new_file(out, "out")
    if tokenizer_out is not None:
        tokenizer_file = _new_file(tokenizer_out, "tokenizer_out")
        if tokenizer_file.suffix != ".pt":
            raise ConfigError(f"tokenizer_out must end in .pt, as LlamaGen's programs read it, got {tokenizer_file}")
        if tokenizer_file.resolve() == file.resolve():
            raise ConfigError(f"tokenizer_out: {tokenizer_file} is the file of the generator; choose another name")
        weights = write_tokenizer("llamagen", pipeline.tokenizer) | _COUNTS
    sizes = write_llamagen(pipeline.generator, file)
    if tokenizer_out is not None:
        try:
            with whole_file(tokenizer_file) as partial:
                torch.save({"model": weights}, partial)
        except OSError as error:
            raise CheckpointError(f"{tokenizer_file} cannot be written ({error.strerror}); make room there") from error
    return sizes


def _new_file(path: str | Path, name: str) -> Path:
    file = expand_user(path, name, PATH)
    if file.exists():
        raise ConfigError(f"{name}: {file} is there already; choose another name or remove it")
    return file
