"""Layers over depth: what the codes of one position are predicted from, after the body's output.

Shapes: N positions of all pictures, n new tokens of each, G codebooks, D hidden size of the body, W of these layers, K
codes, H heads, C head size.
"""

from __future__ import annotations

import torch
from torch import nn

from wvq.generator.base.body import Block, rotary_table
from wvq.generator.base.cache import KeyValueCache
from wvq.generator.base.initialization import set_init_scale
from wvq.generator.base.linear import Projection
from wvq.generator.depth.configuration import DepthTransformerConfig

MOST_ROWS = 2**15  # CUDA kernels of attention number their rows by 16 bits


class DepthLayers(nn.Module):
    """A transformer over the tokens of a position: the body's output, then its codes, each seeing those before it."""

    def __init__(self, config: DepthTransformerConfig):
        super().__init__()
        self.config = config.depth
        self.project = Projection(config.hidden_size, config.depth_hidden_size)
        self.blocks = nn.ModuleList(Block(self.config, layer) for layer in range(self.config.num_layers))
        self.norm = nn.RMSNorm(config.depth_hidden_size, config.norm_eps)

    def new_cache(self, x: torch.Tensor) -> KeyValueCache:
        """An empty cache of keys and values for as many positions as there are rows in x, in its type."""
        config = self.config
        shape = (config.num_layers, 2, len(x), config.num_kv_heads, config.grid[1], config.head_dim)
        return KeyValueCache(x.new_empty(shape))

    def forward(self, x: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Hidden states (N, n, W) of new tokens (N, n, D): without a cache, all of the positions'."""
        if cache is None:
            return torch.cat([self._run(rows, None) for rows in x.split(MOST_ROWS)])
        return self._run(x, cache)

    def _run(self, x: torch.Tensor, cache: KeyValueCache | None) -> torch.Tensor:
        config = self.config
        start = cache.length if cache else 0
        end = start + x.shape[1]
        table = rotary_table(0, 1, config.grid[1], config.head_dim, config.rope_theta, x.device)
        cos, sin = (rows[start:end] for rows in table)
        x = self.project(x)
        for block, layer in zip(self.blocks, cache.layers() if cache else [None] * len(self.blocks), strict=True):
            x = block(x, cos, sin, None, layer)
        if cache:
            cache.length = end
        return self.norm(x)


class Classifier(nn.Module):
    """Logits (..., K) of the codes of one codebook, from hidden states (..., W)."""

    def __init__(self, config: DepthTransformerConfig):
        super().__init__()
        width = config.depth_hidden_size if config.depth_head == "transformer" else config.hidden_size
        self.linear = Projection(width, config.num_codes)
        set_init_scale(self.linear, 0.0 if config.head == "zero" else 1.0)
        if config.code_dim:
            self.vector_out = nn.Linear(width, config.codebook_dim, bias=False)
            set_init_scale(self.vector_out, 0.0)

    def forward(self, x: torch.Tensor, vectors: torch.Tensor | None) -> torch.Tensor:
        """``vectors``: those of the codebook's codes (K, C), if the model sees them."""
        logits = self.linear(x)
        return logits if vectors is None else logits + self.vector_out(x) @ vectors.T
