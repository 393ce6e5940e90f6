"""NextScaleTransformer: a transformer over the maps of a multi-scale tokenizer, all codes of a scale at once.

Reference: Tian et al. 2024, VAR: p(c | y) = prod over scales of p(map_i | coarser maps, y); within a scale all codes
are drawn at once, each from its own distribution.
Shapes: B pictures, P prefix tokens, T codes over all scales, n codes of one, D hidden size, C code dims, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from wvq.errors import ConfigError
from wvq.generator.base.cache import KeyValueCache
from wvq.generator.base.conditioning import Condition, ConditionEmbedder, ConditionVector
from wvq.generator.base.initialization import init_scale
from wvq.generator.base.interface import CodeGenerator, GeneratorOutput
from wvq.generator.base.linear import Projection
from wvq.generator.next_scale.blocks import PARTS, Modulation, ScaleBlock, make_norm, modulate
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.models.scale_maps import Shape, average_to, spread
from wvq.precision import at_least_float32, exact_float32


class NextScaleTransformer(CodeGenerator):
    """Autoregressive model of the maps of a picture's codes, coarse to fine, given a class, a text, both or nothing.

    It holds the tokenizer's code vectors and convolutions, of which the inputs of each scale are made
    (:meth:`take_quantizer`), so it stands alone.

    Example::

        generator = NextScaleTransformer.from_pretrained("runs/var/generator")
        loss = generator(codes, class_labels=labels).loss
    """

    config: NextScaleTransformerConfig
    config_class = NextScaleTransformerConfig
    _no_split_modules = ["ScaleBlock"]
    codebook: torch.Tensor
    conv_weight: torch.Tensor
    conv_bias: torch.Tensor

    def __init__(self, config: NextScaleTransformerConfig):
        super().__init__(config)
        width, dim = config.hidden_size, config.code_dim
        first = math.prod(config.scale_shapes[0])
        prefix = config.conditioning == "prefix"
        self.condition = ConditionEmbedder(config) if prefix else ConditionVector(config)
        self.start = nn.Parameter(torch.zeros(first, width))
        self.position = nn.Parameter(torch.zeros(config.sequence_length, width))
        self.level_embedding = nn.Embedding(len(config.scales), width)
        self.input_projection = nn.Linear(dim, width)
        self.token_dropout = nn.Dropout(config.token_dropout)
        if config.conditioning == "adaptive_shared":
            self.shared_modulation = Modulation(width, PARTS, gates=2)
        self.blocks = nn.ModuleList(ScaleBlock(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config)
        if not prefix:
            self.norm_modulation = Modulation(width, 2, gates=0)
        self.head = Projection(width, config.num_codes)
        if config.attention_bias:
            self.head_bias = nn.Parameter(torch.zeros(config.num_codes))
        convs = len(set(config.conv_of_scale))
        self.register_buffer("codebook", torch.zeros(config.num_codes, dim))
        self.register_buffer("conv_weight", torch.zeros(convs, dim, dim, 3, 3))
        self.register_buffer("conv_bias", torch.zeros(convs, dim))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, Modulation):
            init.zeros_(module.weight)
            init.copy_(module.bias, module.start())
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, 0.0, std * init_scale(module))
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, ConditionEmbedder | ConditionVector):  # has a direct parameter only with text
            init.normal_(module.null_text, 0.0, std)
        elif module is self:
            for parameter in (self.start, self.position):
                init.normal_(parameter, 0.0, std)

    @torch.no_grad()
    def take_quantizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name in ("codebook", "conv_weight", "conv_bias"):
            own, given = getattr(self, name), tensors[name]
            if own.shape != given.shape:
                raise ConfigError(f"{name} {tuple(given.shape)} does not fit this generator's {tuple(own.shape)}")
            own.copy_(given)

    def linear_layers(self) -> list[tuple[nn.Module, str]]:
        layers: list[tuple[nn.Module, str]] = [(self, "head")]
        for block in self.scale_blocks():
            attention, feed_forward = block.attention, block.feed_forward
            layers += [(attention, "qkv"), (attention, "out"), (feed_forward, "up"), (feed_forward, "down")]
        return layers

    def scale_blocks(self) -> list[ScaleBlock]:
        """The layers."""
        return [block for block in self.blocks if isinstance(block, ScaleBlock)]

    def get_input_embeddings(self) -> nn.Module:
        return self.input_projection  # sharded training calls this

    # ---- maps and inputs

    def add_scale(self, maps: torch.Tensor | float, codes: torch.Tensor, index: int) -> torch.Tensor:
        """Features (B, C, h, w) after scale ``index``, from those after the one before and its codes (B, n)."""
        config = self.config
        shapes = config.scale_shapes
        with torch.no_grad(), exact_float32(codes.device.type):
            vectors = (
                F.embedding(codes, at_least_float32(self.codebook)).unflatten(1, shapes[index]).permute(0, 3, 1, 2)
            )
            weight, bias = None, None
            if config.conv_of_scale:
                conv = config.conv_of_scale[index]
                weight, bias = at_least_float32(self.conv_weight[conv]), at_least_float32(self.conv_bias[conv])
            return maps + spread(vectors.contiguous(), shapes[-1], weight, bias, config.scale_conv_ratio)

    def scale_inputs(self, codes: torch.Tensor) -> torch.Tensor:
        """Code vectors (B, T - n_1, C), float32, that scales 2 to S read, of whole pictures (B, T)."""
        shapes = self.config.scale_shapes
        maps: torch.Tensor | float = 0.0
        inputs = [self.codebook.new_zeros(len(codes), 0, self.config.code_dim, dtype=torch.float32)]
        for index, part in enumerate(codes.split([math.prod(shape) for shape in shapes], 1)[:-1]):
            maps = self.add_scale(maps, part, index)
            inputs.append(input_of(maps, shapes[index + 1]))
        return torch.cat(inputs, 1)

    def embed(self, inputs: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Tokens (B, n, D) of the input vectors (B, n, C) of the scales ``first`` to ``last``, the latter left out."""
        return self.input_projection(inputs.to(self.input_projection.weight.dtype)) + self._places(first, last)

    def first_tokens(self, vector: torch.Tensor | None, batch_size: int) -> torch.Tensor:
        """Tokens (B, n_1, D) of the first scale, from the condition's vector (B, D) if it is one."""
        tokens = (self.start + self._places(0, 1)).expand(batch_size, -1, -1)
        return tokens if vector is None else tokens + vector[:, None]

    def _places(self, first: int, last: int) -> torch.Tensor:
        sizes = [math.prod(shape) for shape in self.config.scale_shapes]
        start, end = sum(sizes[:first]), sum(sizes[:last])
        levels = scale_of_token(tuple(sizes), self.position.device)[start:end]
        return self.position[start:end] + self.level_embedding(levels)

    # ---- the transformer

    def modulations(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """What a condition (B, D) makes of each layer (B, 1, 6, D): once a picture, for the passes of sampling."""
        condition = self._block_condition(vector)
        return [block.modulations(condition) for block in self.scale_blocks()]

    def run(
        self,
        x: torch.Tensor,
        vector: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        modulations: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, n, D) of new tokens (B, n, D).

        Args:
            x: (B, n, D) input tokens.
            vector: (B, D) the condition, where it modulates the norms.
            mask: which tokens of the cache and of x each one sees; None for all.
            cache: keys and values of the tokens before; extended by the new ones.
            modulations: those of the vector, if they are made already.
        """
        nothing = [None] * len(self.blocks)
        condition = None if vector is None or modulations is not None else self._block_condition(vector)
        layers = zip(modulations or nothing, cache.layers() if cache is not None else nothing, strict=True)
        for block, (vectors, layer) in zip(self.blocks, layers, strict=True):
            x = block(x, condition, vectors, mask, layer)
        if cache is not None:
            cache.length += x.shape[1]
        x = self.norm(x)
        if vector is None:
            return x
        scale, shift = self.norm_modulation(vector).unbind(2)
        return modulate(x, scale, shift)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, n, K) of hidden states (B, n, D)."""
        logits = self.head(x)
        return logits + self.head_bias if self.config.attention_bias else logits

    def _block_condition(self, vector: torch.Tensor) -> torch.Tensor:
        # What the layers make their vectors of: (B, D), or (B, 1, 6, D) by the layer that serves all.
        return self.shared_modulation(vector) if self.config.conditioning == "adaptive_shared" else vector

    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        return_logits: bool = True,
        null_mask: torch.Tensor | None = None,
    ) -> GeneratorOutput:
        """Logits and loss of whole pictures, by teacher forcing.

        Args:
            codes: (B, T) int64 in [0, K), coarse to fine, each scale row by row.
            class_labels: (B,) int64, -1 for the null class; all null if None.
            text_features, text_mask: (B, L, E) and (B, L) bool; all null if None.
            label_smoothing: share of the targets' probability that the loss spreads over all codes.
            return_logits: False in training: Accelerate would make them float32, which takes memory and time.
            null_mask: (B, L) bool, see :class:`Condition`.

        Raises:
            ConfigError: codes of another number.
            DataError: codes that are no integers, or on another device.
        """
        config = self.config
        codes = self.whole_pictures(codes)
        given = Condition(class_labels, text_features, text_mask, null_mask)
        prefix, vector, valid, bias = self.embed_condition(given, len(codes))
        tokens = [self.first_tokens(vector, len(codes)), self.embed(self.scale_inputs(codes), 1, len(config.scales))]
        x = self.token_dropout(torch.cat(tokens, 1) if bias is None else torch.cat(tokens, 1) + bias)
        mask = scale_mask(config, valid, x.device)
        x = self.run(torch.cat((prefix, x), 1), vector, mask)[:, prefix.shape[1] :]
        loss, logits = (self._compiled_loss or self._loss)(x, codes, label_smoothing)
        return GeneratorOutput(loss, logits) if return_logits else GeneratorOutput(loss)

    def _loss(self, x: torch.Tensor, codes: torch.Tensor, label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
        # Mean cross-entropy of codes (B, T), and logits (B, T, K), of hidden states (B, T, D).
        logits = self.logits(x)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), label_smoothing=label_smoothing), logits

    def embed_condition(
        self, condition: Condition, batch_size: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Prefix tokens (B, P, D), the vector (B, D), which prefix tokens are real (B, P), and a bias (B, 1, D)."""
        if isinstance(self.condition, ConditionEmbedder):
            prefix = self.condition(condition, batch_size)
            return prefix.tokens, None, prefix.valid, prefix.bias
        vector = self.condition(condition, batch_size)
        return vector.new_zeros(batch_size, 0, self.config.hidden_size), vector, None, None


def input_of(maps: torch.Tensor, shape: Shape) -> torch.Tensor:
    """What a scale reads (B, n, C) of the features of all coarser ones (B, C, h, w)."""
    return average_to(maps, shape).flatten(2).transpose(1, 2)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def scale_of_token(sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Index (T,) of each token's scale, of scales of these numbers of codes."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)


def scale_mask(
    config: NextScaleTransformerConfig, valid: torch.Tensor | None, device: torch.device, scales: int | None = None
) -> torch.Tensor:
    """Mask (S, S), or (B, 1, S, S) where some of the prefix is padding, of the prefix and the first scales.

    A token sees the prefix, its own scale and the coarser ones; a token of the prefix sees those before it.

    Args:
        config: of the model.
        valid: (B, P) which tokens of the prefix are real; None if all are.
        device: where the mask is needed.
        scales: how many; all if None.
    """
    sizes = tuple(math.prod(shape) for shape in config.scale_shapes[:scales])
    mask = _block_causal(config.prefix_length, sizes, device)
    if valid is None:
        return mask
    keys = F.pad(valid, (0, sum(sizes)), value=True)[:, None, None, :]
    return (mask & keys) | torch.eye(len(mask), dtype=torch.bool, device=device)  # padding sees itself


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _block_causal(prefix: int, sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    ranks = torch.cat((torch.arange(prefix), prefix + scale_of_token(sizes, torch.device("cpu"))))
    return (ranks[:, None] >= ranks[None, :]).to(device)


AutoConfig.register(NextScaleTransformerConfig.model_type, NextScaleTransformerConfig)
AutoModel.register(NextScaleTransformerConfig, NextScaleTransformer)
