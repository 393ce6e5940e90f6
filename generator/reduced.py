"""Reduced weights for sampling: the linear layers in bfloat16 or int8, everything between them as it was.

A sampled code costs one pass over all weights and little else, so smaller weights are faster ones where the batch is
small. Norms, the residual stream, attention and the logits keep their precision. int8 is symmetric with one scale an
output channel, and multiplies bfloat16 inputs through PyTorch's own kernel for the CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from wvq.errors import ConfigError, near_match
from wvq.generator.modeling import ImageCodeTransformer

REDUCED = ("bf16", "int8")


class ReducedLinear(nn.Module):
    """A linear layer without bias, whose weight (out, in) is kept in ``kind``; for inference alone."""

    def __init__(self, linear: nn.Linear, kind: str):
        super().__init__()
        weight, self.kind = linear.weight.detach().float(), kind
        if kind == "bf16":
            self.register_buffer("weight", weight.bfloat16())
        else:
            scale = weight.abs().amax(1).clamp_min(1e-12) / 127
            self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
            self.register_buffer("scale", scale.bfloat16())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs = x.bfloat16()
        if self.kind == "bf16":
            return F.linear(inputs, self.weight).type_as(x)
        flat = inputs.flatten(0, -2)
        return torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scale).type_as(x).unflatten(0, x.shape[:-1])


def reduce_weights(model: ImageCodeTransformer, kind: str) -> ImageCodeTransformer:
    """Replace the linear layers of the blocks and the head, in place. The model can then only sample.

    Args:
        model: in float32, in eval mode.
        kind: ``bf16`` or ``int8``; the latter on the CPU alone.

    Raises:
        ConfigError: an unknown kind, a model that is reduced already or not in float32, or int8 elsewhere.
    """
    if kind not in REDUCED:
        raise ConfigError(f'weights "{kind}" is unknown{near_match(str(kind), REDUCED)}; one of {", ".join(REDUCED)}')
    if model.reduced is not None:
        raise ConfigError(f"the weights are {model.reduced} already; load the model again")
    if model.dtype != torch.float32:
        raise ConfigError(f"weights: only a float32 model can be reduced, not {model.dtype}; load it without dtype")
    if kind == "int8" and model.device.type != "cpu":
        raise ConfigError(f"weights int8 run on the CPU alone, and the model is on {model.device}; use bf16")
    for block in model.blocks:
        for part, names in ((block.attention, ("qkv", "out")), (block.feed_forward, ("gate_up", "down"))):
            for name in names:
                setattr(part, name, ReducedLinear(getattr(part, name), kind))
    if model.config.head != "tied":
        model.head = ReducedLinear(model.head, kind)
    model.reduced = kind
    return model
