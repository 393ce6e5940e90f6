"""RotaryBody: a Llama-style decoder over a grid of positions, which several generators are built on.

References: Touvron et al. 2023 (RMSNorm, SwiGLU, rotary); Su et al. 2021 (rotary, here one half of each head per axis);
Sun et al. 2024, arXiv 2406.06525 (condition tokens ahead of the codes).
Shapes: B pictures, P prefix tokens, T positions, S = P + T tokens, D hidden size, H heads, C head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from wvq.generator.base.cache import KeyValueCache, LayerCache
from wvq.generator.base.conditioning import ConditionEmbedder
from wvq.generator.base.configuration import GeneratorConfig, RotaryConfig
from wvq.generator.base.initialization import init_scale, set_init_scale
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.linear import Projection


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rotary_table(
    prefix: int, rows: int, columns: int, head_dim: int, theta: float, device: torch.device, erased: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (S, C/2) of all tokens: C/4 frequencies turn with the row, C/4 with the column; prefixes stay at 0.

    Where they are ``erased``, their cosine is 0 as well as their sine.

    A cached function and no buffer: from_pretrained leaves the memory of a non-persistent buffer uninitialised. Made
    outside of inference mode, or a table first needed by sampling could not be trained with afterwards.
    """
    frequencies = theta ** (-torch.arange(head_dim // 4, dtype=torch.float64) / (head_dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = torch.cat([torch.outer(axis.flatten().double(), frequencies) for axis in (row, column)], 1)  # T C/2
    angles = torch.cat([angles.new_zeros(prefix, head_dim // 2), angles])
    cos, sin = angles.cos().float(), angles.sin().float()
    if erased:
        cos[:prefix] = 0
    return cos.to(device), sin.to(device)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x_i, x_{i + C/2}) of (B, H, S, C) by its token's angle."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def branch_scale(config: GeneratorConfig) -> float:
    """Start of a branch's last layer: the sum of 2 L branches keeps the scale of one (Radford et al. 2019)."""
    return 1 / math.sqrt(2 * config.num_layers)


class Attention(nn.Module):
    """Causal self-attention with rotated queries and keys, over a cache if there is one: (B, S, D) -> (B, S, D)."""

    def __init__(self, config: RotaryConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        heads = config.num_heads + 2 * config.num_kv_heads
        self.qkv = Projection(config.hidden_size, heads * config.head_dim)
        self.out = Projection(config.hidden_size, config.hidden_size)
        set_init_scale(self.out, branch_scale(config))
        self.query_norm = nn.RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        cache: LayerCache | None,
    ) -> torch.Tensor:
        heads = rearrange(self.qkv(x), "b s (h c) -> b h s c", c=self.head_dim)
        turned, v = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if isinstance(self.query_norm, nn.RMSNorm):
            q, k = turned.split((self.num_heads, self.num_kv_heads), dim=1)
            turned = torch.cat((self.query_norm(q), self.key_norm(k)), dim=1)
        q, k = rotate(turned, cos, sin).split((self.num_heads, self.num_kv_heads), dim=1)
        if cache is not None:
            k, v = cache.extend(k, v)
        # A single new token sees all that came before: no mask at all, unless some of the prefix is padding.
        # Asked for by `if`: where compiled code holds for any size, a comparison alone is no bool.
        causal = mask is None
        if q.shape[2] == 1:
            causal = False
        grouped = self.num_heads != self.num_kv_heads
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.out(rearrange(x, "b h s c -> b s (h c)"))


class FeedForward(nn.Module):
    """Feed-forward layer (SwiGLU): (B, S, D) -> (B, S, D)."""

    def __init__(self, config: RotaryConfig):
        super().__init__()
        self.gate_up = Projection(config.hidden_size, 2 * config.intermediate_size)
        self.down = Projection(config.intermediate_size, config.hidden_size)
        set_init_scale(self.down, branch_scale(config))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def branch_dropouts(config: GeneratorConfig, layer: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Dropout and stochastic depth behind attention, and behind the feed-forward layer."""
    rate = config.drop_path * layer / max(1, config.num_layers - 1)
    path = [StochasticDepth(rate, mode="row")] if rate else []
    attention, feed_forward = nn.Dropout(config.dropout), nn.Dropout(config.feed_forward_dropout)
    return nn.Sequential(attention, *path), nn.Sequential(feed_forward, *path)


class Block(GradientCheckpointingLayer):
    """One layer: attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, config: RotaryConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.attention_dropout, self.feed_forward_dropout = branch_dropouts(config, layer)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        cache: LayerCache | None,
    ) -> torch.Tensor:
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), cos, sin, mask, cache))
        return x + self.feed_forward_dropout(self.feed_forward(self.feed_forward_norm(x)))


class RotaryBody(CodeGenerator):
    """A generator that reads a class, a text and the positions of a grid by a Llama-style decoder."""

    config: RotaryConfig
    condition: ConditionEmbedder
    _no_split_modules = ["Block"]

    def add_body(self, config: RotaryConfig) -> None:
        """Make the layers between the input tokens and the output layer."""
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # A layer that starts differently carries its scale: newer versions call this for its direct parameters alone.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, 0.0, std * init_scale(module))
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ConditionEmbedder) and module.config.text_dim:  # or else it has no direct parameter
            init.normal_(module.null_text, 0.0, std)

    def linear_layers(self) -> list[tuple[nn.Module, str]]:
        return [layer for block in self.all_blocks() for layer in block_layers(block)]

    def embed_codes(self, codes: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Input tokens (B, n, D) of the codes of n positions and of the condition's bias (B, 1, D)."""
        raise NotImplementedError

    def rotary_tables(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin (S, C/2) of the tokens of a picture, prefix and codes row by row."""
        config = self.config
        sizes = (config.prefix_length, *config.grid, config.head_dim, config.rope_theta)
        return rotary_table(*sizes, device, config.prefix_rotary == "erased")

    def run(
        self,
        x: torch.Tensor,
        valid: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        order: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, n, D) of n new tokens.

        Args:
            x: (B, n, D) input tokens, the first at position ``cache.length`` (0 without a cache).
            valid: (B, P) which prefix tokens are real, or (B, S) with True for all others; None if all are.
            cache: keys and values of the tokens before; extended by the new ones.
            order: (B, T) positions in the order that they are read in, for whole pictures without a cache; row by row
                if None.
        """
        config = self.config
        start = cache.length if cache else 0
        end = start + x.shape[1]
        tables = self.rotary_tables(x.device)
        if order is None:
            cos, sin = (table[start:end] for table in tables)
        else:
            cos, sin = (in_order(table, order, config.prefix_length) for table in tables)
        mask = None if valid is None else attention_mask(valid, start, end)
        if mask is None and start and end - start > 1:  # is_causal would align new tokens with the first ones
            mask = _causal(end, x.device)[start:]
        x = self.run_blocks(x, cos, sin, mask, cache.layers() if cache else [None] * config.num_layers)
        if cache:
            cache.length = end
        return x

    def run_blocks(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        caches: Sequence[LayerCache | None],
    ) -> torch.Tensor:
        """Hidden states (B, n, D) of tokens with the rows of the rotary table and the mask that are theirs."""
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cos, sin, mask, cache)
        return self.norm(x)


def block_layers(block: nn.Module) -> list[tuple[nn.Module, str]]:
    """The linear layers of a block, each as its module and its name there."""
    assert isinstance(block, Block)
    attention, feed_forward = block.attention, block.feed_forward
    return [(attention, "qkv"), (attention, "out"), (feed_forward, "gate_up"), (feed_forward, "down")]


def in_order(table: torch.Tensor, order: torch.Tensor, prefix: int) -> torch.Tensor:
    """Rows (B, 1, S, C/2) of a rotary table for prefix and codes in their order, without the last one."""
    places = torch.arange(prefix, device=order.device).expand(len(order), -1)
    return table[torch.cat((places, prefix + order[:, :-1]), 1)][:, None]


@lru_cache(maxsize=16)
def _causal(length: int, device: torch.device) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def attention_mask(valid: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Mask (B, 1, n, end) of tokens start..end: causal, without the padding of the prefix.

    A padding token sees itself: a softmax over nothing would be NaN.
    """
    keys = F.pad(valid, (0, max(0, end - valid.shape[1])), value=True)[:, None, None, :end]
    if end - start == 1:
        return keys
    causal = _causal(end, valid.device)[start:end]
    itself = torch.eye(end, dtype=torch.bool, device=valid.device)[start:end]
    return (causal & keys) | itself
