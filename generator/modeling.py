"""ImageCodeTransformer: a Llama-style decoder over a grid of image codes, read top to bottom.

References: Touvron et al. 2023 (RMSNorm, SwiGLU, rotary); Su et al. 2021 (rotary, here one half of each head per axis);
Sun et al. 2024, arXiv 2406.06525 (condition tokens ahead of the codes, not rotated).
Shapes: B pictures, P prefix tokens, T codes, S = P + T tokens, D hidden size, H heads, C head size, K codes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from wvq.errors import ConfigError
from wvq.generator.conditioning import Condition, ConditionEmbedder
from wvq.generator.configuration import GeneratorConfig, ImageCodeTransformerConfig
from wvq.generator.initialization import init_scale, set_init_scale
from wvq.generator.linear import Projection
from wvq.models.pretrained import GIVEN, StrictPreTrainedModel, as_codes


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rotary_table(
    prefix: int, rows: int, columns: int, head_dim: int, theta: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (S, C/2) of all tokens: C/4 frequencies turn with the row, C/4 with the column; prefixes stay at 0.

    A cached function and no buffer: from_pretrained leaves the memory of a non-persistent buffer uninitialised. Made
    outside of inference mode, or a table first needed by sampling could not be trained with afterwards.
    """
    frequencies = theta ** (-torch.arange(head_dim // 4, dtype=torch.float64) / (head_dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = torch.cat([torch.outer(axis.flatten().double(), frequencies) for axis in (row, column)], 1)  # T C/2
    angles = torch.cat([angles.new_zeros(prefix, head_dim // 2), angles])
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x_i, x_{i + C/2}) of (B, H, S, C) by its token's angle."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class LayerCache(Protocol):
    """Keys and values of the tokens that one layer has read."""

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of new tokens (B, H, n, C); return those that the new tokens may see."""


@dataclass(frozen=True)
class FilledLayer:
    """The cache of a layer whose first ``length`` tokens are filled; memory: (2, B, H, S, C)."""

    memory: torch.Tensor
    length: int

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of new tokens (B, H, n, C); return those of all tokens so far."""
        end = self.length + keys.shape[2]
        stored = self.memory
        stored[0, :, :, self.length : end] = keys
        stored[1, :, :, self.length : end] = values
        return stored[0, :, :, :end], stored[1, :, :, :end]


class KeyValueCache:
    """Preallocated keys and values of every layer, written in place; ``length`` tokens are filled.

    Args:
        memory: (layers, 2, B, H, S, C), as :func:`cache_shape` says.
    """

    def __init__(self, memory: torch.Tensor):
        self.memory = memory
        self.length = 0

    def part(self, start: int, stop: int) -> KeyValueCache:
        """Those rows of the batch, in the same memory, with their own length."""
        part = copy.copy(self)
        part.memory = self.memory[:, :, start:stop]
        return part

    def layers(self) -> list[FilledLayer]:
        """The caches of the layers, for the next tokens."""
        return [FilledLayer(self.memory[layer], self.length) for layer in range(len(self.memory))]


def cache_shape(config: GeneratorConfig, batch_size: int) -> tuple[int, ...]:
    """Shape of the keys and values of all layers for whole pictures: (layers, 2, B, H, S, C)."""
    length = config.prefix_length + config.sequence_length
    return config.num_layers, 2, batch_size, config.num_kv_heads, length, config.head_dim


def branch_scale(config: GeneratorConfig) -> float:
    """Start of a branch's last layer: the sum of 2 L branches keeps the scale of one (Radford et al. 2019)."""
    return 1 / math.sqrt(2 * config.num_layers)


class Attention(nn.Module):
    """Causal self-attention with rotated queries and keys, over a cache if there is one: (B, S, D) -> (B, S, D)."""

    def __init__(self, config: ImageCodeTransformerConfig):
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
        causal = mask is None and q.shape[2] > 1
        grouped = self.num_heads != self.num_kv_heads
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.out(rearrange(x, "b h s c -> b s (h c)"))


class FeedForward(nn.Module):
    """Feed-forward layer (SwiGLU): (B, S, D) -> (B, S, D)."""

    def __init__(self, config: ImageCodeTransformerConfig):
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

    def __init__(self, config: ImageCodeTransformerConfig, layer: int):
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


@dataclass
class GeneratorOutput(ModelOutput):
    """Loss and logits of whole pictures.

    Attributes:
        loss: 0-d, mean cross-entropy of the codes in nats.
        logits: (B, T, K); place t predicts code t from the condition and the codes before it, in the order that they
            were read in. None if they were not asked for.
    """

    loss: torch.Tensor = GIVEN
    logits: torch.Tensor = GIVEN


class ImageCodeTransformer(StrictPreTrainedModel):
    """Autoregressive model of the codes of a picture, row by row, given a class, a text, both or nothing.

    Example::

        generator = ImageCodeTransformer.from_pretrained("runs/openmoji/generator")
        loss = generator(codes, class_labels=labels).loss
    """

    config: ImageCodeTransformerConfig
    config_class = ImageCodeTransformerConfig
    kind = "generator"
    base_model_prefix = ""
    main_input_name = "codes"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    reduced: str | None = None  # what reduce_weights has made of the linear layers
    full_hash: str | None = None  # of the weights before that
    codebook: torch.Tensor
    head: Projection
    _compiled_loss: Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]] | None = None

    def __init__(self, config: ImageCodeTransformerConfig):
        super().__init__(config)
        self.condition = ConditionEmbedder(config)
        self.code_embedding = nn.Embedding(config.num_codes, config.hidden_size)
        if config.target_positions:
            self.target_embedding = nn.Embedding(config.sequence_length, config.hidden_size)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        if config.head != "tied":
            self.head = Projection(config.hidden_size, config.num_codes)
            set_init_scale(self.head, 0.0 if config.head == "zero" else 1.0)
        if config.code_dim:
            self.register_buffer("codebook", torch.zeros(config.num_codes, config.code_dim))
            self.vector_in = nn.Linear(config.code_dim, config.hidden_size, bias=False)
            self.vector_out = nn.Linear(config.hidden_size, config.code_dim, bias=False)
            set_init_scale(self.vector_out, 0.0)
        self.post_init()

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

    @torch.no_grad()
    def set_codebook(self, codebook: torch.Tensor) -> None:
        """Give the model the tokenizer's code vectors (K, D), scaled to unit variance.

        Raises:
            ConfigError: the shape differs from ``num_codes`` x ``code_dim``.
        """
        if tuple(codebook.shape) != (self.config.num_codes, self.config.code_dim):
            raise ConfigError(
                f"codebook {tuple(codebook.shape)} does not fit num_codes {self.config.num_codes} "
                f"x code_dim {self.config.code_dim}"
            )
        self.codebook.copy_(codebook - codebook.mean(0)).div_(codebook.std().clamp_min(1e-8))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.code_embedding  # sharded training calls this

    # ---- parts, shared by the training forward and by sampling

    def embed_codes(self, codes: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Input tokens (B, n, D) of codes (B, n) and of the condition's bias (B, 1, D)."""
        x = self.code_embedding(codes)
        if self.config.code_dim:
            x = x + self.vector_in(F.embedding(codes, self.codebook))
        return x if bias is None else x + bias

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (..., K) of hidden states (..., D)."""
        logits = F.linear(x, self.code_embedding.weight) if self.config.head == "tied" else self.head(x)
        return logits + self.vector_out(x) @ self.codebook.T if self.config.code_dim else logits

    def add_targets(self, x: torch.Tensor, start: int, order: torch.Tensor | None) -> torch.Tensor:
        """Add to new tokens (B, n, D), the first at place ``start``, the vector of the position that each predicts."""
        first = self.config.prefix_length - 1  # predicts the first code
        skipped = max(0, first - start)
        if order is None:
            order = torch.arange(start + skipped - first, start + x.shape[1] - first, device=x.device)
        return torch.cat((x[:, :skipped], x[:, skipped:] + self.target_embedding(order)), 1)

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
        tables = rotary_table(config.prefix_length, *config.grid, config.head_dim, config.rope_theta, x.device)
        if order is None:
            cos, sin = (table[start:end] for table in tables)
        else:
            cos, sin = (in_order(table, order, config.prefix_length) for table in tables)
        if config.target_positions:
            x = self.add_targets(x, start, order)
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

    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        return_logits: bool = True,
    ) -> GeneratorOutput:
        """Logits and loss of whole pictures.

        Args:
            codes: (B, T) or (B, h, w) int64 in [0, K).
            class_labels: (B,) int64, -1 for the null class; all null if None.
            text_features, text_mask: (B, L, E) and (B, L) bool; all null if None.
            order: (B, T) int64, each row a permutation: the positions in the order that they are read in; row by row
                if None. Needs a model with ``target_positions``.
            label_smoothing: share of the targets' probability that the loss spreads over all codes.
            return_logits: False in training: Accelerate would make them float32, which takes memory and time.

        Raises:
            ConfigError: codes of another number, or an order that the model cannot follow.
            DataError: codes that are no integers, or on another device.
        """
        codes = as_codes(codes, self.code_embedding.weight.device).flatten(1)
        if order is not None:
            if not self.config.target_positions:
                raise ConfigError("order needs a model with target_positions: true")
            codes = codes.gather(1, order)
        if codes.shape[1] != self.config.sequence_length:
            raise ConfigError(
                f"codes must hold {self.config.sequence_length} a picture (grid {self.config.grid}), "
                f"got {tuple(codes.shape)}"
            )
        prefix = self.condition(Condition(class_labels, text_features, text_mask), len(codes))
        x = self.token_dropout(self.embed_codes(codes[:, :-1], prefix.bias))
        x = self.run(torch.cat((prefix.tokens, x), dim=1), prefix.valid, order=order)
        x = x[:, self.config.prefix_length - 1 :]
        loss, logits = (self._compiled_loss or self._loss)(x, codes, label_smoothing)
        return GeneratorOutput(loss, logits) if return_logits else GeneratorOutput(loss)

    def _loss(self, x: torch.Tensor, codes: torch.Tensor, label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
        # Mean cross-entropy of codes (B, T), and logits (B, T, K), of hidden states (B, T, D).
        logits = self.logits(x)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), label_smoothing=label_smoothing), logits

    def compile(self, *args, **kwargs) -> None:
        """Compile each block, all by the same code, and the head with its loss; arguments as for torch.compile.

        A whole model takes minutes, and gains little more. The loss reads the logits once, and never as float32.
        """
        if self.config.drop_path:  # each block has its own rate, and so code of its own
            limits = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, 2 * self.config.num_layers)
        for block in self.blocks:
            block.compile(*args, **kwargs)
        self._compiled_loss = torch.compile(self._loss, *args, **kwargs)


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


AutoConfig.register(ImageCodeTransformerConfig.model_type, ImageCodeTransformerConfig)
AutoModel.register(ImageCodeTransformerConfig, ImageCodeTransformer)
