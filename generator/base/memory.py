"""Memory that parts of several generators need: a rotary body's blocks, and the draw of codes from logits."""

from __future__ import annotations

from wvq.generator.base.configuration import GeneratorConfig, RotaryConfig
from wvq.generator.base.sampling_settings import SamplingSettings

FLOAT, INDEX = 4, 8  # bytes of float32, int64


def pass_bytes(config: RotaryConfig, tokens: int, bytes_per_value: int) -> int:
    """Bytes of a row in one pass over new tokens: in attention or in the feed-forward layer; and a mask."""
    mask = (1 + bytes_per_value) * tokens**2 if config.text_length else 0
    return tokens * max(attention_bytes(config, bytes_per_value), feed_forward_bytes(config, bytes_per_value)) + mask


def attention_bytes(config: RotaryConfig, bytes_per_value: int) -> int:
    """Bytes of a token in attention: residual, norm, heads, and queries and keys while they are turned, as float32."""
    width, keys = config.hidden_size, config.num_kv_heads * config.head_dim
    turned = (width + keys) * FLOAT * (2 if bytes_per_value == FLOAT else 3)
    return (3 * width + 2 * keys) * bytes_per_value + turned


def feed_forward_bytes(config: RotaryConfig, bytes_per_value: int) -> int:
    """Bytes of a token in a feed-forward layer: residual, norm, gate, up, their product, its half."""
    return (3 * config.hidden_size + 4 * config.intermediate_size) * bytes_per_value


def text_bytes(config: GeneratorConfig, rows: int, bytes_per_value: int) -> int:
    """Bytes that embedding texts takes, beside their features: those of all rows, and twice in the model's type."""
    return rows * config.text_length * config.text_dim * (FLOAT + 2 * bytes_per_value)


def filter_bytes(settings: SamplingSettings, held: bool) -> int:
    """Most bytes that the filters need for a logit beside the logit itself; ``held``: their input is kept meanwhile."""
    top_k, top_p, min_p = settings.top_k > 0, settings.top_p < 1, settings.min_p > 0
    mask, again = 1, FLOAT
    needed = [0]
    if top_k:
        needed.append(mask + FLOAT)
    if top_p:  # sorted values and their order, probabilities, their sums, what is removed
        ordered = FLOAT + INDEX + 2 * FLOAT + mask
        needed.append((again if top_k and held else 0) + ordered + FLOAT)
    if min_p:
        ordered = FLOAT + INDEX + FLOAT + mask if top_p else 0
        needed.append((again if (top_k or top_p) and held else 0) + ordered + FLOAT + mask + FLOAT)
    return max(needed)


def logit_bytes(logits: int, rows: int, bytes_per_value: int) -> int:
    """Bytes of logits, from the model's to the guided ones.

    Args:
        logits: values of the pictures; guidance doubles them.
        rows: of the model a picture: 2 with guidance, else 1.
        bytes_per_value: size of a value of the model.
    """
    wider = 0 if bytes_per_value == FLOAT else bytes_per_value
    first = rows * logits * (FLOAT + wider)  # of the model, made float32
    return max(first, (rows + 1) * logits * FLOAT if rows > 1 else 0)


def draw_bytes(logits: int, rows: int, settings: SamplingSettings, bytes_per_value: int) -> int:
    """Bytes from logits to codes that are drawn at once; arguments as of :func:`logit_bytes`."""
    # The logits, over the temperature, filtered; or probabilities and their sums.
    drawn = logits * max(2 * FLOAT + filter_bytes(settings, held=False), 3 * FLOAT)
    return max(logit_bytes(logits, rows, bytes_per_value), drawn)


def block_weights(config: RotaryConfig) -> int:
    """Weights of the linear layers of all blocks."""
    width, keys = config.hidden_size, config.num_kv_heads * config.head_dim
    return config.num_layers * width * (2 * width + 2 * keys + 3 * config.intermediate_size)


def norm_bytes(config: RotaryConfig, mixed: bool, fused: bool) -> int:
    """Bytes of a token that a norm keeps: its input, its output, and what is scaled by its weight."""
    return config.hidden_size * (FLOAT + (2 if mixed else FLOAT) + (0 if fused else FLOAT))


def block_bytes(config: RotaryConfig, mixed: bool, fused: bool, compiled: bool) -> int:
    """Bytes of a token that a block keeps for the backward pass."""
    value = 2 if mixed else FLOAT
    width, inner, keys = config.hidden_size, config.intermediate_size, config.num_kv_heads * config.head_dim
    norm = norm_bytes(config, mixed, fused)
    mask = width * (1 if fused else value)
    attention = norm + (3 * width + 3 * keys) * value + (mask if config.dropout else 0)
    if fused:  # what is attended to also in the order of its linear layer, and the sums of exponentials
        attention += width * value + config.num_heads * FLOAT
    if config.qk_norm:
        attention += (width + keys) * FLOAT
    feed_forward = norm + 4 * inner * value + (mask if config.feed_forward_dropout else 0)
    if compiled:  # the output of attention in place of the sum that it is part of; no silu
        feed_forward -= width * (FLOAT - value) + inner * value
    return attention + feed_forward


def gradient_bytes(config: RotaryConfig, mixed: bool) -> int:
    """Bytes of a token that a block's gradients take at once, beside what they have not freed yet."""
    return 2 * config.intermediate_size * (2 if mixed else FLOAT) + 2 * config.hidden_size * FLOAT
