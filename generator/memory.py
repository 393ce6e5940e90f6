"""Memory that sampling and training need, estimated before they start. B pictures, S tokens, D width, K codes."""

from __future__ import annotations

import psutil
import torch

from wvq.errors import ConfigError
from wvq.generator.configuration import ImageCodeTransformerConfig

GIB = 2**30


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available if device.type == "cpu" else None


def sampling_bytes(config: ImageCodeTransformerConfig, rows: int, bytes_per_value: int = 4) -> int:
    """Bytes of a batch of ``rows`` sequences in sampling, beside the weights: key/value cache, and logits on their way.

    A guided batch has two rows a picture.
    """
    tokens = config.prefix_length + config.sequence_length
    cache = config.num_layers * 2 * config.num_kv_heads * config.head_dim * tokens * bytes_per_value
    # float32: logits of both halves, guided, filtered, sorted with their order, probabilities and their sums
    drawing = 8 * 4 * config.num_codes
    return rows * (cache + drawing)


def training_bytes(
    config: ImageCodeTransformerConfig, parameters: int, batch: int, averaged: bool, checkpointing: bool
) -> int:
    """Bytes of a training step, from below: weights, gradients, moments, average; activations of ``batch`` pictures.

    Activations in float32 (half of it under bf16 or fp16 but for the logits, which is left out of account): a block
    keeps about its input, the norms, q, k, v, the attended values, and gate, up and product of the feed-forward layer;
    with checkpointing its input alone. Attention itself keeps nothing of size S x S.
    """
    tokens = batch * (config.prefix_length + config.sequence_length)
    kept = config.hidden_size
    if not checkpointing:
        attention = config.hidden_size * 4 + 2 * config.num_kv_heads * config.head_dim
        kept = 2 * config.hidden_size + attention + config.hidden_size + 3 * config.intermediate_size
    activations = 2 * tokens * kept * config.num_layers  # 2 bytes: what a run under bf16 keeps at least
    logits = 2 * 4 * tokens * config.num_codes
    return parameters * 4 * (4 + averaged) + activations + logits


def require_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """
    Raises:
        ConfigError: ``what`` needs more than is free.
    """
    free = available_memory(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"{what} needs about {needed / GIB:.1f} GiB of memory where {free / GIB:.1f} GiB are free; {remedy}"
        )
