"""ImageCodeTransformer: a Llama-style decoder over a grid of image codes, read top to bottom.

References: Touvron et al. 2023 (RMSNorm, SwiGLU, rotary); Su et al. 2021 (rotary, here one half of each head per axis);
Sun et al. 2024, arXiv 2406.06525 (condition tokens ahead of the codes).
Shapes: B pictures, P prefix tokens, T codes, S = P + T tokens, D hidden size, H heads, C head size, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel

from wvq.errors import ConfigError
from wvq.generator.base.body import RotaryBody
from wvq.generator.base.cache import KeyValueCache
from wvq.generator.base.conditioning import Condition, ConditionEmbedder
from wvq.generator.base.initialization import set_init_scale
from wvq.generator.base.interface import GeneratorOutput
from wvq.generator.base.linear import Projection
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig


class ImageCodeTransformer(RotaryBody):
    """Autoregressive model of the codes of a picture, row by row, given a class, a text, both or nothing.

    Example::

        generator = ImageCodeTransformer.from_pretrained("runs/openmoji/generator")
        loss = generator(codes, class_labels=labels).loss
    """

    config: ImageCodeTransformerConfig
    config_class = ImageCodeTransformerConfig
    codebook: torch.Tensor
    head: Projection

    def __init__(self, config: ImageCodeTransformerConfig):
        super().__init__(config)
        self.condition = ConditionEmbedder(config)
        self.code_embedding = nn.Embedding(config.num_codes, config.hidden_size)
        if config.target_positions:
            self.target_embedding = nn.Embedding(config.sequence_length, config.hidden_size)
        self.add_body(config)
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
    def take_quantizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the code vectors (K, D), scaled to unit variance, if the model is to see them.

        Raises:
            ConfigError: the shape differs from ``num_codes`` x ``code_dim``.
        """
        if not self.config.code_dim:
            return
        codebook = tensors["codebook"]
        if tuple(codebook.shape) != (self.config.num_codes, self.config.code_dim):
            raise ConfigError(
                f"codebook {tuple(codebook.shape)} does not fit num_codes {self.config.num_codes} "
                f"x code_dim {self.config.code_dim}"
            )
        self.codebook.copy_(codebook - codebook.mean(0)).div_(codebook.std().clamp_min(1e-8))

    def linear_layers(self) -> list[tuple[nn.Module, str]]:
        return [*super().linear_layers(), *([(self, "head")] if self.config.head != "tied" else [])]

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
        if self.config.target_positions:
            x = self.add_targets(x, cache.length if cache else 0, order)
        return super().run(x, valid, cache, order)

    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        return_logits: bool = True,
        null_mask: torch.Tensor | None = None,
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
            null_mask: (B, L) bool, see :class:`Condition`.

        Raises:
            ConfigError: codes of another number, or an order that the model cannot follow.
            DataError: codes that are no integers, or on another device.
        """
        codes = self.whole_pictures(codes)
        if order is not None:
            if not self.config.target_positions:
                raise ConfigError("order needs a model with target_positions: true")
            codes = codes.gather(1, order)
        prefix = self.condition(Condition(class_labels, text_features, text_mask, null_mask), len(codes))
        x = self.token_dropout(self.embed_codes(codes[:, :-1], prefix.bias))
        x = self.run(torch.cat((prefix.tokens, x), dim=1), prefix.valid, order=order)
        x = x[:, self.config.prefix_length - 1 :]
        loss, logits = (self._compiled_loss or self._loss)(x, codes, label_smoothing)
        return GeneratorOutput(loss, logits) if return_logits else GeneratorOutput(loss)

    def _loss(self, x: torch.Tensor, codes: torch.Tensor, label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
        # Mean cross-entropy of codes (B, T), and logits (B, T, K), of hidden states (B, T, D).
        logits = self.logits(x)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), label_smoothing=label_smoothing), logits


AutoConfig.register(ImageCodeTransformerConfig.model_type, ImageCodeTransformerConfig)
AutoModel.register(ImageCodeTransformerConfig, ImageCodeTransformer)
