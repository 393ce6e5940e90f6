"""Memory that sampling and training of a depth generator need: the tensors that are alive at the peak.

Beside the body's, those over depth: G tokens a position, and the logits of G codebooks, which are the most of it where
codes are many.
"""

from __future__ import annotations

from wvq.generator.base.configuration import RotaryConfig
from wvq.generator.base.memory import (
    FLOAT,
    block_bytes,
    block_weights,
    draw_bytes,
    gradient_bytes,
    norm_bytes,
    pass_bytes,
    text_bytes,
)
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.depth.configuration import DepthTransformerConfig

# ---- sampling


def sampling_bytes(
    config: DepthTransformerConfig, batch: int, settings: SamplingSettings, bytes_per_value: int, given: int
) -> int:
    """Arguments as of :func:`wvq.generator.memory.sampling_bytes`."""
    scales, read = settings.scales(config.num_positions), given // config.num_groups
    rows = batch * (2 if any(scale != 1 for scale in scales[read:]) else 1)
    kept = config.num_layers * config.num_kv_heads * config.head_dim * (config.prefix_length + config.num_positions)
    if config.depth_head == "transformer":
        kept += config.depth_layers * config.depth_hidden_size * config.num_groups
    cache = rows * 2 * kept * bytes_per_value
    # The half without the condition catches up where guidance begins.
    late = next((i for i, scale in enumerate(scales) if scale != 1 and i >= read), 0)
    first = (batch if late > read else rows) * pass_bytes(config, config.prefix_length + read, bytes_per_value)
    catching_up = batch * pass_bytes(config, config.prefix_length + late, bytes_per_value)
    text = text_bytes(config, rows, bytes_per_value)
    prefix = rows * config.prefix_length * config.hidden_size * bytes_per_value
    drawing = draw_bytes(batch * config.num_codes, rows // batch, settings, bytes_per_value)  # of one codebook
    return cache + prefix + max(text, first, catching_up, drawing)


# ---- training


def training_bytes(
    config: DepthTransformerConfig,
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
    weights = parameters * FLOAT * (3 + averaged)  # with both moments
    held = parameters * gradients
    value = 2 if mixed else FLOAT
    positions = batch * config.num_positions
    # Both transformers with their tokens, in the order of the forward pass.
    stacks: list[tuple[RotaryConfig, int]] = [(config, batch * (config.prefix_length + config.num_positions - 1))]
    kept, classified = _input_bytes(config, batch, fused), config.hidden_size
    if config.depth_head == "transformer":
        stacks.append((config.depth, positions * config.num_groups))
        kept += positions * config.num_groups * config.hidden_size * value  # those tokens, ahead of their width
        classified = config.depth_hidden_size
    copies_of_classifiers = 2 * config.num_groups * classified * config.num_codes if mixed else 0
    copies, of_stacks = copies_of_classifiers, []
    for sizes, tokens in stacks:
        block = tokens * block_bytes(sizes, mixed, fused, compiled)
        layers = sizes.num_layers * (tokens * sizes.hidden_size * FLOAT if checkpointing else block)
        inside = block * checkpointing + tokens * gradient_bytes(sizes, mixed)
        of_stacks.append((layers, tokens * norm_bytes(sizes, mixed, fused), inside))
        kept += layers + of_stacks[-1][1]
        copies += 2 * block_weights(sizes) if mixed else 0
    # Of each codebook its logits and their log-probabilities; then their gradients, of one codebook at a time. Blocks
    # that are computed again make copies of their own: the others are freed with the forward pass.
    logits, groups = positions * config.num_codes, config.num_groups
    forward = groups * (value + FLOAT) + (FLOAT if mixed else 0)
    backward = (groups + 2) * FLOAT + (value if mixed else 0)
    copies_again = copies_of_classifiers if checkpointing else copies
    peaks = [kept + copies + forward * logits, kept + copies_again + backward * logits]
    for layers, norm, inside in reversed(of_stacks):  # what comes after a transformer is free by then
        peaks.append(kept - norm + inside)
        kept -= norm + layers
    # In the end all gradients exist beside those inside of the first block.
    return weights + max(held + max(peaks), max(held, parameters * FLOAT) + of_stacks[0][2], between)


def _input_bytes(config: DepthTransformerConfig, batch: int, fused: bool) -> int:
    """Bytes that are kept ahead of the blocks."""
    tokens = batch * (config.prefix_length + config.num_positions - 1)
    dropped = config.hidden_size * (1 if fused else FLOAT) if config.token_dropout else 0
    return tokens * dropped + batch * config.text_length * config.text_dim * FLOAT


def whole_pass_bytes(config: DepthTransformerConfig, batch: int, bytes_per_value: int) -> int:
    """Arguments as of :func:`wvq.generator.memory.whole_pass_bytes`."""
    # Those of each codebook are put together before their log-probabilities are taken: as many bytes.
    wider = 0 if bytes_per_value == FLOAT else bytes_per_value
    logits = config.sequence_length * config.num_codes * (2 * FLOAT + wider)
    tokens = config.prefix_length + config.num_positions - 1
    run = pass_bytes(config, tokens, bytes_per_value)
    states = tokens * config.hidden_size
    if config.depth_head == "transformer":
        run = max(run, pass_bytes(config.depth, config.sequence_length, bytes_per_value))
        states += config.sequence_length * config.depth_hidden_size
    return batch * (states * bytes_per_value + max(logits, run))
