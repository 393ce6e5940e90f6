"""Memory that sampling and training of a next-scale generator need: the tensors that are alive at the peak."""

from __future__ import annotations

import math

from wvq.generator.base.guidance import scale_guidance
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig

FLOAT = 4  # bytes of a value in float32


def sampling_bytes(
    config: NextScaleTransformerConfig, batch: int, settings: SamplingSettings, bytes_per_value: int, given: int
) -> int:
    """Arguments as of :func:`wvq.generator.memory.sampling_bytes`; all scales run, whatever is given."""
    rows = batch * (2 if any(scale != 1 for scale in scale_guidance(settings, len(config.scales))) else 1)
    tokens = config.prefix_length + config.sequence_length
    cache = rows * tokens * config.num_layers * 2 * config.hidden_size * bytes_per_value
    largest = math.prod(config.scale_shapes[-1])
    run = rows * largest * (3 * config.hidden_size + 4 * config.intermediate_size) * bytes_per_value
    logits = largest * config.num_codes * (rows * (FLOAT + bytes_per_value) + batch * 5 * FLOAT)
    return cache + max(run, logits)


def training_bytes(
    config: NextScaleTransformerConfig,
    parameters: int,
    batch: int,
    averaged: bool,
    checkpointing: bool,
    *,
    mixed: bool,
    fused: bool,
    compiled: bool,
    gradients: int,
    between: int,
) -> int:
    """Arguments as of :func:`wvq.generator.memory.training_bytes`."""
    value = 2 if mixed else FLOAT
    weights = parameters * FLOAT * (3 + averaged)
    tokens = batch * (config.prefix_length + config.sequence_length)
    width, inner = config.hidden_size, config.intermediate_size
    block = tokens * (width * 12 * value + 4 * inner * value + 2 * width * FLOAT)
    kept = config.num_layers * (tokens * width * FLOAT if checkpointing else block) + block * checkpointing
    logits = tokens * config.num_codes * 3 * FLOAT
    return weights + max(parameters * gradients + kept + logits, parameters * FLOAT + block, between)


def whole_pass_bytes(config: NextScaleTransformerConfig, batch: int, bytes_per_value: int) -> int:
    """Arguments as of :func:`wvq.generator.memory.whole_pass_bytes`."""
    tokens = config.prefix_length + config.sequence_length
    logits = config.sequence_length * config.num_codes * (2 * FLOAT + bytes_per_value)
    run = tokens * (3 * config.hidden_size + 4 * config.intermediate_size) * bytes_per_value
    return batch * (tokens * config.hidden_size * FLOAT + max(logits, run))
