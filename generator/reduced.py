"""Reduced weights for sampling: the linear layers in bfloat16 or int8, everything between them unchanged.

A sampled code costs one pass over all weights and little else, so smaller weights are faster ones where the batch is
small. Norms, the residual stream, attention and the logits keep their precision. int8 weights are symmetric with one
scale an output channel. Their inputs become 8-bit numbers too, with one scale a token, where the processor multiplies
those exactly (VNNI), and bfloat16 elsewhere.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from wvq.errors import ConfigError, near_match
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.linear import Projection
from wvq.models.pretrained import weights_hash


class BFloat16Linear(Projection):
    """A linear layer whose weight is kept in bfloat16, between float32 inputs and outputs; for inference alone."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features)
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.bfloat16()).type_as(x)


class Int8Linear(nn.Module):
    """A linear layer without bias whose weight (out, in) is kept in int8; for inference on the CPU alone."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        self.weight = (weight / scale[:, None]).round().to(torch.int8)
        self.vnni = torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()
        self.register_buffer("scale", scale if self.vnni else scale.bfloat16())
        if self.vnni:
            self.zero = torch.zeros(len(scale), dtype=torch.int64)
            self.weight = torch.ops.onednn.qlinear_prepack(self.weight, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        multiply = self._by_bytes if self.vnni else self._by_bfloat16
        return multiply(flat).type_as(x).unflatten(0, x.shape[:-1])

    def _by_bytes(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (n, in) as unsigned bytes around 128. A scale a token keeps a picture free of its batch."""
        scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / 127
        inputs = (x / scale).round_().add_(128).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            inputs, 1.0, 128, self.weight, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product.mul_(scale)

    def _by_bfloat16(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self.weight, self.scale)


Generator = TypeVar("Generator", bound=CodeGenerator)
REDUCED = {"bf16": BFloat16Linear, "int8": Int8Linear}


def reduce_weights(model: Generator, kind: str) -> Generator:
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
    model.full_hash = weights_hash(model)
    for part, name in model.linear_layers():
        setattr(part, name, REDUCED[kind](getattr(part, name)))
    model.reduced = kind
    return model
