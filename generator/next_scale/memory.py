"""Memory that sampling and training of a next-scale generator need: the tensors that are alive at the peak.

Shapes: B pictures, n tokens of a scale, D hidden size, I width of the feed-forward layer, C code dims, K codes.
"""

from __future__ import annotations

import math

from wvq.generator.base.guidance import scale_guidance
from wvq.generator.base.memory import FLOAT, draw_bytes, logit_bytes, text_bytes
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_scale.blocks import PARTS
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig

# ---- sampling


def sampling_bytes(
    config: NextScaleTransformerConfig, batch: int, settings: SamplingSettings, bytes_per_value: int, given: int
) -> int:
    """Arguments as of :func:`wvq.generator.memory.sampling_bytes`; all scales run, whatever is given."""
    rows = batch * (2 if any(scale != 1 for scale in scale_guidance(settings, len(config.scales))) else 1)
    width, largest = config.hidden_size, math.prod(config.scale_shapes[-1])
    tokens = config.prefix_length + config.sequence_length
    cache = rows * tokens * config.num_layers * 2 * width * bytes_per_value
    modulations = 0 if _prefixed(config) else rows * config.num_layers * PARTS * width * bytes_per_value
    maps = (batch + rows) * largest * config.code_dim * FLOAT
    text = text_bytes(config, rows, bytes_per_value)
    prefix = rows * config.prefix_length * width * bytes_per_value
    ends = 2 * rows * largest * width * bytes_per_value  # tokens and hidden states of the pass whose codes are drawn
    logits, halves = batch * largest * config.num_codes, rows // batch
    if settings.temperature == 0:
        drawing = ends + logit_bytes(logits, halves, bytes_per_value)
    else:
        drawing = ends + draw_bytes(logits, halves, settings, bytes_per_value)
    run = rows * _pass_bytes(config, largest, bytes_per_value)
    return cache + modulations + maps + prefix + max(text, run, drawing)


def _pass_bytes(config: NextScaleTransformerConfig, tokens: int, bytes_per_value: int) -> int:
    """Bytes of a row in a pass over new tokens, at the peak: in attention or in the feed-forward layer.

    The tokens, the input of the block and the residual stream, and what a branch reads; where the condition modulates,
    the branch of attention, too. Then gate, up, silu and their product, or two of a layer without a gate; or, in
    attention, queries, keys and values, the first two normalised, and the output, twice.
    """
    kept = 4 if _prefixed(config) else 5
    inner = (4 if config.feed_forward == "swiglu" else 2) * config.intermediate_size
    attention = (9 if config.attention_bias else 7) * config.hidden_size
    return tokens * (kept * config.hidden_size + max(inner, attention - config.hidden_size)) * bytes_per_value


# ---- training


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
    weights = parameters * FLOAT * (3 + averaged)  # with both moments
    held = parameters * gradients
    value = 2 if mixed else FLOAT
    width, length = config.hidden_size, config.prefix_length + config.sequence_length
    tokens = batch * length
    block = tokens * _block_bytes(config, mixed, fused, compiled) + length**2 * value  # and the mask as numbers
    inside = block * checkpointing + tokens * _gradient_bytes(config, mixed)
    kept = config.num_layers * (tokens * width * FLOAT if checkpointing else block)
    # The last norm, modulated; what token dropout leaves out; features of texts; code vectors.
    kept += tokens * width * (2 * FLOAT + value + (_mask_bytes(FLOAT, fused) if config.token_dropout else 0))
    kept += batch * (config.text_length * config.text_dim + config.sequence_length * config.code_dim) * FLOAT
    copies = 2 * _product_weights(config) if mixed else 0
    # Blocks that are computed again make copies of their own: the others are freed with the forward pass.
    copies_again = copies // max(1, config.num_layers) if checkpointing else copies
    # Logits, as float32, and their log-probabilities; then these, their gradient and that of the logits. Compiled, the
    # logits, and then their gradient too.
    forward, backward = (value, 2 * value) if compiled else ((value if mixed else 0) + 2 * FLOAT, 3 * FLOAT)
    logits = batch * config.sequence_length * config.num_codes
    step = kept + max(copies + forward * logits, copies_again + max(backward * logits, inside))
    # In the end all gradients exist beside those inside of the first block.
    return weights + max(held + step, max(held, parameters * FLOAT) + inside, between)


def _block_bytes(config: NextScaleTransformerConfig, mixed: bool, fused: bool, compiled: bool) -> int:
    """Bytes of a token that a block keeps for the backward pass."""
    value = 2 if mixed else FLOAT
    width, inner = config.hidden_size, config.intermediate_size
    norms = 2 * width * (2 * FLOAT + value)  # input, normalised, and what a branch reads
    sums = FLOAT if config.attention_bias else value  # of products and their biases, which are float32
    attention = width * (3 * sums + 2 * value)  # queries, keys, values; the output, twice
    if config.qk_norm == "rms":  # normalised, without their weights and with them; mixed, also as float32
        attention += 2 * width * (FLOAT * (1 + mixed) + value)
    elif config.qk_norm == "l2":  # queries also before their scale; mixed, values as bfloat16
        attention += width * (FLOAT + (3 if mixed else 2) * value)
    gated = config.feed_forward == "swiglu"
    # Gate, up, silu (which compiled code computes again) and their product; or what GELU reads and gives.
    feed_forward = inner * ((3 if compiled else 4) * value if gated else FLOAT + value)
    outputs = (sums, value if gated else FLOAT)  # of both branches
    branches = 0 if _prefixed(config) else sum(outputs)
    for rate, size in zip((config.dropout, config.feed_forward_dropout), outputs, strict=True):
        branches += _mask_bytes(size, fused) if rate else 0
    return norms + attention + feed_forward + width * branches


def _gradient_bytes(config: NextScaleTransformerConfig, mixed: bool) -> int:
    """Bytes of a token that a block's gradients take at once, beside what they have not freed yet."""
    inner = (2 if config.feed_forward == "swiglu" else 1) * config.intermediate_size
    return inner * (2 if mixed else FLOAT) + config.hidden_size * FLOAT


def _mask_bytes(value: int, fused: bool) -> int:
    """Bytes of a value that dropout keeps."""
    return 1 if fused else value


def _product_weights(config: NextScaleTransformerConfig) -> int:
    """Weights of the linear layers."""
    width, gated = config.hidden_size, config.feed_forward == "swiglu"
    block = width * (4 * width + (3 if gated else 2) * config.intermediate_size)
    if config.conditioning == "adaptive":
        block += PARTS * width**2
    return config.num_layers * block + width * config.num_codes


# ---- whole pictures


def whole_pass_bytes(config: NextScaleTransformerConfig, batch: int, bytes_per_value: int) -> int:
    """Arguments as of :func:`wvq.generator.memory.whole_pass_bytes`."""
    wider = 0 if bytes_per_value == FLOAT else bytes_per_value
    tokens = config.prefix_length + config.sequence_length
    logits = config.sequence_length * config.num_codes * (2 * FLOAT + wider)
    ends = tokens * config.hidden_size * bytes_per_value  # tokens before they are dropped; hidden states
    return batch * (ends + max(ends + logits, _pass_bytes(config, tokens, bytes_per_value)))


def _prefixed(config: NextScaleTransformerConfig) -> bool:
    return config.conditioning == "prefix"
