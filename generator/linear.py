"""The generator's linear layer without bias: one that is fast for the few rows of a sampling step."""

from __future__ import annotations

import torch
from torch import nn

FEW_ROWS = 64


class Projection(nn.Linear):
    """x W', computed as (W x')' where that is faster: for a few rows in float32 on the CPU, outside of training.

    Such a product is one pass over W. PyTorch's BLAS makes it along W's rows only in this order: with the weights of
    size B on two cores, 2 rows take a quarter of the time of F.linear, 8 nine tenths, 32 three quarters.
    benchmarks/sampling.py has the whole step.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // x.shape[-1]
        small = 1 < rows <= FEW_ROWS and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not small or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        product = torch.mm(self.weight, x.reshape(rows, -1).T)
        return product.T.contiguous().view(*x.shape[:-1], -1)
