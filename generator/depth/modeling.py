"""DepthTransformer: a Llama-style decoder over positions, and a small transformer over the codes of each position.

Reference: Lee et al. 2022, RQ-Transformer, arXiv 2203.01941: p(c | y) = prod over positions t and codebooks g of
p(c_tg | c_t1 .. c_t,g-1, c_1 .. c_t-1, y). The body reads the sum of a position's embedded codes.
Shapes: B pictures, P prefix tokens, T positions, N positions of all pictures, G codebooks, D hidden size, W width over
depth, K codes of a codebook, C dims of its code vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel

from wvq.errors import ConfigError
from wvq.generator.base.body import RotaryBody
from wvq.generator.base.conditioning import Condition, ConditionEmbedder
from wvq.generator.base.interface import GeneratorOutput
from wvq.generator.depth.configuration import DepthTransformerConfig
from wvq.generator.depth.layers import Classifier, DepthLayers

_Loss = tuple[torch.Tensor, list[torch.Tensor]]


class DepthTransformer(RotaryBody):
    """Autoregressive model of product codes, position by position and codebook by codebook.

    Example::

        generator = DepthTransformer.from_pretrained("runs/product/generator")
        loss = generator(codes, class_labels=labels).loss
    """

    config: DepthTransformerConfig
    config_class = DepthTransformerConfig
    codebook: torch.Tensor
    depth: DepthLayers | None

    def __init__(self, config: DepthTransformerConfig):
        super().__init__(config)
        self.condition = ConditionEmbedder(config)
        # The table of codebook g begins at row g K.
        self.code_embedding = nn.Embedding(config.num_groups * config.num_codes, config.hidden_size)
        self.add_body(config)
        self.depth = DepthLayers(config) if config.depth_head == "transformer" else None
        self.classifiers = nn.ModuleList(Classifier(config) for _ in range(config.num_groups))
        if config.code_dim:
            self.register_buffer("codebook", torch.zeros(config.num_groups, config.num_codes, config.codebook_dim))
            self.vector_in = nn.Linear(config.code_dim, config.hidden_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def take_quantizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the code vectors (G, K, C), each codebook's scaled to unit variance, if the model is to see them.

        Raises:
            ConfigError: vectors of another number or other dims than the config says.
        """
        if not self.config.code_dim:
            return
        codebook = tensors["codebook"]
        if codebook.shape != self.codebook.shape:
            raise ConfigError(
                f"codebook {tuple(codebook.shape)} does not fit num_groups {self.config.num_groups} x num_codes "
                f"{self.config.num_codes} x code_dim / num_groups {self.config.codebook_dim}"
            )
        spread = codebook.std((1, 2), keepdim=True).clamp_min(1e-8)
        self.codebook.copy_((codebook - codebook.mean(1, keepdim=True)) / spread)

    def all_blocks(self) -> list[nn.Module]:
        return [*super().all_blocks(), *(self.depth.blocks if self.depth is not None else ())]

    def linear_layers(self) -> list[tuple[nn.Module, str]]:
        project: list[tuple[nn.Module, str]] = [] if self.depth is None else [(self.depth, "project")]
        return [*super().linear_layers(), *project, *((classifier, "linear") for classifier in self.classifiers)]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.code_embedding  # sharded training calls this

    # ---- parts, shared by the training forward and by sampling

    def embed_each(self, codes: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Vectors (..., n, D) of codes (..., n) of n codebooks, ``first`` and those after it."""
        config, end = self.config, first + codes.shape[-1]
        rows = codes + config.num_codes * torch.arange(first, end, device=codes.device)
        x = self.code_embedding(rows)
        if config.code_dim:
            maps = self.vector_in.weight.unflatten(1, (config.num_groups, -1))[:, first:end]
            x = x + torch.einsum("...nc,dnc->...nd", F.embedding(rows, self.codebook.flatten(0, 1)), maps)
        return x

    def embed_codes(self, codes: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Input tokens (B, n, D) of the codes (B, n, G) of n positions and of the condition's bias (B, 1, D)."""
        x = self.embed_each(codes).sum(2)
        return x if bias is None else x + bias

    def logits(self, x: torch.Tensor, group: int) -> torch.Tensor:
        """Logits (..., K) of the codes of a codebook, from what predicts them: hidden states (..., W) over depth.

        With parallel heads that is the output of the body, (..., D).
        """
        return self.classifiers[group](x, self.codebook[group] if self.config.code_dim else None)

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
        """Logits and loss of whole pictures.

        Args:
            codes: (B, h, w, G), or flat (B, T G), int64 in [0, K).
            class_labels: (B,) int64, -1 for the null class; all null if None.
            text_features, text_mask: (B, L, E) and (B, L) bool; all null if None.
            label_smoothing: share of the targets' probability that the loss spreads over all codes.
            return_logits: False in training: they are put together of those of each codebook, which takes memory.
            null_mask: (B, L) bool, see :class:`Condition`.

        Raises:
            ConfigError: codes of another number.
            DataError: codes that are no integers, or on another device.
        """
        codes = self.whole_pictures(codes).unflatten(1, (-1, self.config.num_groups))
        prefix = self.condition(Condition(class_labels, text_features, text_mask, null_mask), len(codes))
        x = self.token_dropout(self.embed_codes(codes[:, :-1], prefix.bias))
        x = self.run(torch.cat((prefix.tokens, x), dim=1), prefix.valid)[:, self.config.prefix_length - 1 :]
        states = self.depth_states(x.flatten(0, 1), codes.flatten(0, 1))
        loss, logits = (self._compiled_loss or self._loss)(states, codes.flatten(0, 1), label_smoothing)
        if not return_logits:
            return GeneratorOutput(loss)
        return GeneratorOutput(loss, torch.stack(logits, 1).unflatten(0, codes.shape[:2]).flatten(1, 2))

    def depth_states(self, hidden: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """What predicts the codes (N, G) of whole positions: (N, G, W), from the body's outputs (N, D)."""
        if self.depth is None:
            return hidden[:, None].expand(-1, self.config.num_groups, -1)
        return self.depth(torch.cat((hidden[:, None], self.embed_each(codes[:, :-1])), 1))

    def _loss(self, states: torch.Tensor, codes: torch.Tensor, label_smoothing: float) -> _Loss:
        # Mean cross-entropy of codes (N, G), and logits (N, K) of each codebook, of hidden states (N, G, W). Each
        # codebook by itself: all logits are never copied into one tensor.
        logits = [self.logits(x, group) for group, x in enumerate(states.unbind(1))]
        losses = [
            F.cross_entropy(given.float(), wanted, label_smoothing=label_smoothing)
            for given, wanted in zip(logits, codes.unbind(1), strict=True)
        ]
        return torch.stack(losses).mean(), logits


AutoConfig.register(DepthTransformerConfig.model_type, DepthTransformerConfig)
AutoModel.register(DepthTransformerConfig, DepthTransformer)
