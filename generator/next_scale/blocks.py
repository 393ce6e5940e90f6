"""Layers of the next-scale generator: norms that a condition modulates, attention within and before a scale.

References: Peebles & Xie 2023 (adaptive norms with gates); Tian et al. 2024, VAR (one layer for all, l2 norm of queries
and keys with a trained scale).
Shapes: B pictures, n tokens, D hidden size, H heads, C head size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from wvq.generator.base.body import branch_dropouts, branch_scale
from wvq.generator.base.cache import LayerCache
from wvq.generator.base.initialization import set_init_scale
from wvq.generator.base.linear import Projection
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig

PARTS = 6  # of a layer's modulation: gates, scales and shifts of attention and of the feed-forward layer
L2_SCALE, MOST_L2_SCALE = math.log(4), math.log(100)


def make_norm(config: NextScaleTransformerConfig, width: int | None = None) -> nn.Module:
    """A norm of the hidden states; without weights of its own where the condition modulates it."""
    own = config.conditioning == "prefix" or width is not None
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(width or config.hidden_size, config.norm_eps, elementwise_affine=own)


class Modulation(nn.Linear):
    """``parts`` vectors (B, 1, parts, D) from a condition (B, D), by SiLU and a linear layer.

    It starts as if there were no modulation: gates 1, scales and shifts 0, whatever the condition.

    Args:
        width: D.
        parts: number of vectors.
        gates: how many of the first are gates.
    """

    def __init__(self, width: int, parts: int, gates: int):
        super().__init__(width, parts * width)
        self.parts, self.gates = parts, gates

    def start(self) -> torch.Tensor:
        """The bias (parts x D,) that it starts with."""
        bias = torch.zeros(self.parts, self.in_features)
        bias[: self.gates] = 1.0
        return bias.flatten()

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        return super().forward(F.silu(condition)).unflatten(-1, (self.parts, -1))[:, None]


def modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """x (1 + scale) + shift, for x (B, n, D) and vectors (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


def normed(norm: nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """x normalised in float32 by one kernel: there is none for a weight of another type than x, as under autocast."""
    return F.rms_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.eps).type_as(x)


class ScaleAttention(nn.Module):
    """Self-attention over all tokens of the cache and the new ones, as a mask allows: (B, n, D) -> (B, n, D)."""

    def __init__(self, config: NextScaleTransformerConfig):
        super().__init__()
        self.head_dim, self.norm = config.head_dim, config.qk_norm
        self.qkv = Projection(config.hidden_size, 3 * config.hidden_size)
        self.out = Projection(config.hidden_size, config.hidden_size)
        set_init_scale(self.out, branch_scale(config))
        self.biased = config.attention_bias
        if self.biased:
            self.query_bias = nn.Parameter(torch.zeros(config.hidden_size))
            self.value_bias = nn.Parameter(torch.zeros(config.hidden_size))
            self.out_bias = nn.Parameter(torch.zeros(config.hidden_size))
        if config.qk_norm == "rms":
            self.query_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
            self.key_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
        elif config.qk_norm == "l2":
            self.log_scale = nn.Parameter(torch.full((config.num_heads, 1, 1), L2_SCALE))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, cache: LayerCache | None) -> torch.Tensor:
        qkv = self.qkv(x)
        if self.biased:
            qkv = qkv + torch.cat((self.query_bias, torch.zeros_like(self.query_bias), self.value_bias))
        q, k, v = rearrange(qkv, "b n (t h c) -> t b h n c", t=3, c=self.head_dim)
        scale = None
        if self.norm == "rms":
            q, k = normed(self.query_norm, q), normed(self.key_norm, k)
        elif self.norm == "l2":
            q = F.normalize(q, dim=-1) * self.log_scale.clamp_max(MOST_L2_SCALE).exp()
            k, scale = F.normalize(k, dim=-1), 1.0
        if cache is not None:
            k, v = cache.extend(k, v)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        x = self.out(rearrange(x, "b h n c -> b n (h c)"))
        return x + self.out_bias if self.biased else x


class ScaleFeedForward(nn.Module):
    """Feed-forward layer, SwiGLU or GELU: (B, n, D) -> (B, n, D)."""

    def __init__(self, config: NextScaleTransformerConfig):
        super().__init__()
        self.gated, inner = config.feed_forward == "swiglu", config.intermediate_size
        self.up = Projection(config.hidden_size, 2 * inner if self.gated else inner)
        self.down = Projection(inner, config.hidden_size)
        set_init_scale(self.down, branch_scale(config))
        if not self.gated:
            self.up_bias = nn.Parameter(torch.zeros(inner))
            self.down_bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gated:
            gate, up = self.up(x).chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(F.gelu(self.up(x) + self.up_bias, approximate="tanh")) + self.down_bias


class ScaleBlock(GradientCheckpointingLayer):
    """One layer: attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, config: NextScaleTransformerConfig, layer: int):
        super().__init__()
        self.attention_norm, self.feed_forward_norm = make_norm(config), make_norm(config)
        self.attention, self.feed_forward = ScaleAttention(config), ScaleFeedForward(config)
        self.conditioning = config.conditioning
        if config.conditioning == "adaptive":
            self.modulation = Modulation(config.hidden_size, PARTS, gates=2)
        elif config.conditioning == "adaptive_shared":
            self.modulation_offset = nn.Parameter(torch.zeros(PARTS, config.hidden_size))
        self.attention_dropout, self.feed_forward_dropout = branch_dropouts(config, layer)

    def modulations(self, condition: torch.Tensor) -> torch.Tensor:
        """The vectors (B, 1, 6, D) that a condition makes of this layer: two gates, two scales, two shifts.

        Args:
            condition: (B, D); (B, 1, 6, D) where one layer serves all.
        """
        return self.modulation(condition) if self.conditioning == "adaptive" else condition + self.modulation_offset

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor | None,
        vectors: torch.Tensor | None,
        mask: torch.Tensor | None,
        cache: LayerCache | None,
    ) -> torch.Tensor:
        """New hidden states (B, n, D).

        Args:
            x: (B, n, D).
            condition: of the norms, as of :meth:`modulations`; None without.
            vectors: what :meth:`modulations` has made of it already; None to make it here, where sharded weights are
                whole.
            mask: (n, S) or (B, 1, n, S) bool; None if all is seen.
            cache: extended by the new tokens.
        """
        if condition is not None and vectors is None:
            vectors = self.modulations(condition)
        if vectors is None:
            x = x + self.attention_dropout(self.attention(self.attention_norm(x), mask, cache))
            return x + self.feed_forward_dropout(self.feed_forward(self.feed_forward_norm(x)))
        gate1, gate2, scale1, scale2, shift1, shift2 = vectors.unbind(2)
        branch = self.attention(modulate(self.attention_norm(x), scale1, shift1), mask, cache)
        x = torch.addcmul(x, self.attention_dropout(branch), gate1)
        branch = self.feed_forward(modulate(self.feed_forward_norm(x), scale2, shift2))
        return torch.addcmul(x, self.feed_forward_dropout(branch), gate2)
