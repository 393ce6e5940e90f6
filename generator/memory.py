"""Memory that sampling and training need, estimated before they start, for every kind of generator.

Each estimate is what PyTorch allocates beside its libraries; it follows the tensors that are alive at the peak.
benchmarks/memory.py compares the estimates with what runs use.
"""

from __future__ import annotations

from typing import Any, Protocol

from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.depth import memory as depth
from wvq.generator.depth.configuration import DepthTransformerConfig
from wvq.generator.next_code import memory as next_code
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_scale import memory as next_scale
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig

FLOAT = 4  # bytes of a value in float32


class _Estimates(Protocol):
    """The estimates of one kind of generator: a module with these three functions."""

    @property
    def sampling_bytes(self) -> Any: ...

    @property
    def training_bytes(self) -> Any: ...

    @property
    def whole_pass_bytes(self) -> Any: ...


_ESTIMATES: dict[type[GeneratorConfig], _Estimates] = {
    ImageCodeTransformerConfig: next_code,
    DepthTransformerConfig: depth,
    NextScaleTransformerConfig: next_scale,
}


def sampling_bytes(
    config: GeneratorConfig,
    batch: int,
    settings: SamplingSettings,
    bytes_per_value: int = FLOAT,
    given: int = 0,
) -> int:
    """Bytes of drawing the codes of a batch, beside the weights and the features of texts.

    Args:
        config: config of the generator.
        batch: pictures at once.
        settings: whether guidance, filters and a window are on, and in how many passes codes are drawn.
        bytes_per_value: size of a value of the weights' type, which keys and values have too.
        given: codes that are read before the first is drawn.
    """
    return _ESTIMATES[type(config)].sampling_bytes(config, batch, settings, bytes_per_value, given)


def training_bytes(
    config: GeneratorConfig,
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
    """Bytes of training, in all: of a step, or of what is done between steps.

    Args:
        config: config of the generator.
        parameters: their number, all of them on this device.
        batch: pictures of a forward pass.
        averaged: whether a moving average of the weights is kept.
        checkpointing: whether blocks are computed again in the backward pass.
        mixed: products in half precision.
        fused: whether norms, dropout and attention are fused kernels, as on GPUs; norms and dropout keep less.
        compiled: whether blocks and loss are compiled; what is quickly computed again is not kept.
        gradients: bytes a parameter that are held through the step, as gradients are between the parts of an
            accumulated one, and the buckets that several processes exchange.
        between: bytes of what is done between steps, beside weights, moments and average.
    """
    return _ESTIMATES[type(config)].training_bytes(
        config,
        parameters,
        batch,
        averaged,
        checkpointing,
        mixed=mixed,
        fused=fused,
        compiled=compiled,
        gradients=gradients,
        between=between,
    )


def whole_pass_bytes(config: GeneratorConfig, batch: int, bytes_per_value: int = FLOAT) -> int:
    """Bytes of the losses of whole pictures without gradients: logits, as float32, and their log-probabilities."""
    return _ESTIMATES[type(config)].whole_pass_bytes(config, batch, bytes_per_value)
