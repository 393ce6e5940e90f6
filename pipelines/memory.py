"""Memory that drawing pictures needs, estimated before it starts: text, codes, decoding, and the pictures kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from wvq.generator.base.filters import FREE
from wvq.generator.base.linear import packed_bytes
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.memory import sampling_bytes, whole_pass_bytes
from wvq.generator.next_code.captured import keeps_memory, kept_bytes, padded
from wvq.memory import require_memory
from wvq.tokenizer.memory import decoding_bytes

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline

ENCODED = 64  # texts at once


def require_room(
    pipeline: ImageGenerationPipeline,
    batch_size: int,
    settings: SamplingSettings,
    given: int = 0,
    previews: bool = False,
) -> int:
    """Check that there is memory for drawing a batch; returns the bytes that it takes.

    Arguments as in :func:`drawing_bytes`.

    Raises:
        ConfigError: they are not free.
    """
    needed = drawing_bytes(pipeline, batch_size, settings, given, previews)
    remedy = "take a smaller batch_size" if batch_size > 1 else "take a smaller model, or dtype=torch.bfloat16"
    used_again = 0 if settings.passes else kept_bytes(pipeline.generator)
    beside = max(0, needed - used_again)
    require_memory(beside, pipeline.device, f"sampling with batch_size {batch_size}", remedy)
    return needed


def drawing_bytes(
    pipeline: ImageGenerationPipeline,
    batch_size: int,
    settings: SamplingSettings,
    given: int = 0,
    previews: bool = False,
) -> int:
    """Bytes of drawing one batch on the pipeline's device, beside the weights.

    Args:
        pipeline: whose parts draw.
        batch_size: pictures at once.
        settings: sampling settings of the call.
        given: codes that are read before the first is drawn.
        previews: whether pictures are decoded while they are drawn.
    """
    config, tokenizer = pipeline.generator.config, pipeline.tokenizer
    rows = settings.fixed_rows or batch_size
    # The cache of recorded steps stays beside decoding, from one batch to the next; no step draws several codes.
    kept = keeps_memory(pipeline.generator) and not settings.passes
    codes = sampling_bytes(config, padded(rows) if kept else rows, settings, pipeline.generator.dtype.itemsize, given)
    features = batch_size * config.text_length * config.text_dim * 4
    # A layer of a text encoder: what goes in, query, key, value, what was attended to, and twice the four-fold width.
    encoding = min(batch_size, ENCODED) * config.text_length * 13 * config.text_dim * 4
    value = next(tokenizer.decoder.parameters())
    decoding = decoding_bytes(tokenizer.config, rows, value.dtype.itemsize, value.device.type)
    copies = packed_bytes(pipeline.generator) if settings.deterministic else 0  # made elsewhere only if they fit beside
    beside = codes if kept or previews else 0  # what drawing holds while pictures are decoded
    return copies + features + max(encoding + (codes if kept else 0), codes, beside + decoding)


def require_room_for_losses(pipeline: ImageGenerationPipeline, batch_size: int) -> None:
    """Check that there is memory for the likelihoods of a batch.

    Raises:
        ConfigError: the likelihoods of a batch need more than is free.
    """
    needed = whole_pass_bytes(pipeline.generator.config, batch_size, pipeline.generator.dtype.itemsize)
    require_memory(needed, pipeline.device, f"log_likelihood with batch_size {batch_size}", "take a smaller batch_size")


def read_ahead(fixed_codes: torch.Tensor | None, settings: SamplingSettings) -> int:
    """Most codes that a picture reads before its first draw; 0 without fixed codes (N, ...).

    Those given ahead of the first that is drawn, or with ``passes`` all that are given.
    """
    if fixed_codes is None:
        return 0
    given = (fixed_codes.flatten(1) != FREE).long()
    return int((given if settings.passes else given.cumprod(1)).sum(1).max())
