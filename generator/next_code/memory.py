"""Memory that sampling and training need, estimated before they start: what PyTorch allocates beside its libraries.

Each estimate follows the tensors that are alive at the peak; benchmarks/memory.py compares the estimates with what runs
use.
"""

from __future__ import annotations

from wvq.generator.base.memory import (
    FLOAT,
    attention_bytes,
    block_bytes,
    block_weights,
    draw_bytes,
    feed_forward_bytes,
    filter_bytes,
    gradient_bytes,
    logit_bytes,
    norm_bytes,
    pass_bytes,
    text_bytes,
)
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.any_order import group_sizes
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig

# ---- sampling


def sampling_bytes(
    config: ImageCodeTransformerConfig,
    batch: int,
    settings: SamplingSettings,
    bytes_per_value: int = FLOAT,
    given: int = 0,
) -> int:
    """Arguments as of :func:`wvq.generator.memory.sampling_bytes`; given codes are read in one pass."""
    scales = settings.scales(config.sequence_length)
    rows = batch * (2 if any(scale != 1 for scale in scales) else 1)
    tokens = config.prefix_length + config.sequence_length
    cache = rows * tokens * config.num_layers * 2 * config.num_kv_heads * config.head_dim * bytes_per_value
    # The half without the condition catches up where guidance begins.
    late = next((i for i, scale in enumerate(scales) if scale != 1 and i >= given), 0)
    sizes = group_sizes(config.sequence_length - given, settings.passes) if settings.passes else []
    if sizes:
        reading = _groups_bytes(config, batch if late > given else rows, rows, given, sizes, bytes_per_value)
    else:
        first = (batch if late > given else rows) * pass_bytes(config, config.prefix_length + given, bytes_per_value)
        reading = max(first, rows * pass_bytes(config, settings.window, bytes_per_value))
    catching_up = batch * pass_bytes(config, config.prefix_length + late, bytes_per_value)
    text = text_bytes(config, rows, bytes_per_value)
    prefix = rows * config.prefix_length * config.hidden_size * bytes_per_value
    drawing = _drawing_bytes(config, batch, rows, settings, max(sizes, default=1), bytes_per_value)
    return cache + prefix + max(text, reading, catching_up, drawing)


def _groups_bytes(
    config: ImageCodeTransformerConfig, first_rows: int, rows: int, given: int, sizes: list[int], bytes_per_value: int
) -> int:
    """Most bytes of a pass that reads the codes of one group and asks for the next."""
    attention, feed_forward = attention_bytes(config, bytes_per_value), feed_forward_bytes(config, bytes_per_value)
    most, known, read = 0, config.prefix_length + given, 0
    for size in sizes:
        seen = known + size - 1
        tokens = seen - read
        held = rows if read else first_rows
        tables = tokens * config.head_dim * FLOAT  # each picture's rows
        mask = tokens * seen * (held if config.text_length else 1)  # attention also has it as numbers
        attending = held * tokens * attention + mask * (1 + bytes_per_value)
        most = max(most, held * tables + max(attending, held * tokens * feed_forward + mask))
        known, read = known + size, known
    return most


def _drawing_bytes(
    config: ImageCodeTransformerConfig,
    batch: int,
    rows: int,
    settings: SamplingSettings,
    group: int,
    bytes_per_value: int,
) -> int:
    """Bytes from logits to codes, of a group of positions, or of a window of them."""
    longest = config.sequence_length - 1  # the first code is drawn alone
    window = min(settings.window, longest)
    logits = batch * config.num_codes * (window or group)  # of the pictures; guidance doubles them
    if not window:
        return draw_bytes(logits, rows // batch, settings, bytes_per_value)
    guided = logit_bytes(logits, rows // batch, bytes_per_value)
    if settings.temperature == 0:
        return guided
    noise = logits * FLOAT
    # Then noise is added to the logits; a window that moves on has its noise copied, and some added.
    drawn = logits * (3 if window < longest else 2) * FLOAT
    return noise + max(guided, logits * (FLOAT + filter_bytes(settings, held=True)), drawn)


# ---- training


def training_bytes(
    config: ImageCodeTransformerConfig,
    parameters: int,
    batch: int,
    averaged: bool,
    checkpointing: bool,
    *,
    mixed: bool = False,
    fused: bool = True,
    compiled: bool = False,
    gradients: int = 0,
    between: int = 0,
) -> int:
    """Arguments as of :func:`wvq.generator.memory.training_bytes`."""
    weights = parameters * FLOAT * (3 + averaged)  # with both moments
    held = parameters * gradients
    tokens = batch * (config.prefix_length + config.sequence_length - 1)
    block = tokens * block_bytes(config, mixed, fused, compiled)
    inside = block * checkpointing + tokens * gradient_bytes(config, mixed)
    kept = config.num_layers * (tokens * config.hidden_size * FLOAT if checkpointing else block)
    kept += _ends_bytes(config, batch, mixed, fused)
    copies = 2 * _product_weights(config) if mixed else 0
    # Blocks that are computed again make copies of their own: the others are freed with the forward pass.
    copies_again = copies // max(1, config.num_layers) if checkpointing else copies
    value = 2 if mixed else FLOAT
    # Logits, as float32, and their log-probabilities; then these, their gradient and that of the logits. Compiled, the
    # logits, and then their gradient too.
    forward, backward = (value, 2 * value) if compiled else ((value if mixed else 0) + 2 * FLOAT, 3 * FLOAT)
    logits = batch * config.sequence_length * config.num_codes
    step = kept + max(copies + forward * logits, copies_again + max(backward * logits, inside))
    # In the end all gradients exist beside those inside of the first block.
    return weights + max(held + step, max(held, parameters * FLOAT) + inside, between)


def _product_weights(config: ImageCodeTransformerConfig) -> int:
    """Weights of the linear layers."""
    return block_weights(config) + config.hidden_size * config.num_codes


def _ends_bytes(config: ImageCodeTransformerConfig, batch: int, mixed: bool, fused: bool) -> int:
    """Bytes that are kept ahead of the blocks and behind them."""
    tokens = batch * (config.prefix_length + config.sequence_length - 1)
    dropped = config.hidden_size * (1 if fused else FLOAT) if config.token_dropout else 0
    text = batch * config.text_length * config.text_dim * FLOAT
    return tokens * (norm_bytes(config, mixed, fused) + dropped) + text


def whole_pass_bytes(config: ImageCodeTransformerConfig, batch: int, bytes_per_value: int = FLOAT) -> int:
    """Bytes of the losses of whole pictures without gradients: logits, as float32, and their log-probabilities."""
    wider = 0 if bytes_per_value == FLOAT else bytes_per_value
    sums = FLOAT if config.code_dim else 0
    logits = config.sequence_length * config.num_codes * (2 * FLOAT + wider + sums)
    tokens = config.prefix_length + config.sequence_length - 1
    return batch * (tokens * config.hidden_size * FLOAT + max(logits, pass_bytes(config, tokens, bytes_per_value)))
