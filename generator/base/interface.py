"""CodeGenerator, what all generators of image codes have in common, and what their forward pass returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers.utils import ModelOutput

from wvq.data.layout import layout_name
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import ConditionNetwork
from wvq.generator.base.configuration import GeneratorConfig
from wvq.models.pretrained import GIVEN, StrictPreTrainedModel, as_codes


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


class Quantizer(Protocol):
    """A tokenizer's quantizer, as a generator of its codes needs it; a protocol, since no stage imports the other."""

    def code_tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What makes features of codes, for :meth:`CodeGenerator.take_quantizer`."""


class CodeGenerator(StrictPreTrainedModel):
    """An autoregressive model of the codes of a picture of one layout, given a class, a text, both or nothing.

    Its ``forward(codes, class_labels, text_features, text_mask, label_smoothing, return_logits, null_mask)`` gives the
    loss and the logits of whole pictures, (B, T) in the flat order of :mod:`wvq.data.layout`;
    :mod:`wvq.generator.sampling` draws pictures.

    Attributes:
        condition: embeds the conditions.
        blocks: the layers that the positions go through.
        reduced: what :func:`wvq.generator.reduced.reduce_weights` has made of the linear layers.
        full_hash: hash of the weights before that.
    """

    config: GeneratorConfig
    kind = "generator"
    base_model_prefix = ""
    main_input_name = "codes"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    condition: ConditionNetwork
    blocks: nn.ModuleList
    reduced: str | None = None
    full_hash: str | None = None
    _compiled_loss: Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, Any]] | None = None

    def take_quantizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take what the model needs of the tokenizer whose codes it draws, before it is trained.

        Args:
            tensors: ``codebook`` (K, D), or (G, K, D / G) of G codebooks a position; of a multi-scale tokenizer also
                ``conv_weight`` (M, D, D, 3, 3) and ``conv_bias`` (M, D) of its convolutions.

        Raises:
            ConfigError: shapes that do not fit the config.
        """

    def all_blocks(self) -> list[nn.Module]:
        """The blocks of the model, wherever they are."""
        return [*self.blocks]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile each block, all by the same code, and the output layers with the loss; arguments as of torch.compile.

        A whole model takes minutes, and gains little more. The loss reads the logits once, and never as float32.
        """
        if self.config.drop_path:  # each block has its own rate, and so code of its own
            limits = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, 2 * self.config.num_layers)
        for block in self.all_blocks():
            block.compile(*args, **kwargs)
        self._compiled_loss = torch.compile(self._loss, *args, **kwargs)

    def _loss(self, x: torch.Tensor, codes: torch.Tensor, label_smoothing: float) -> tuple[torch.Tensor, Any]:
        # Mean cross-entropy of codes, and their logits, of the hidden states that predict them.
        raise NotImplementedError

    def linear_layers(self) -> list[tuple[nn.Module, str]]:
        """The layers whose weights can be reduced for sampling: each as its module and its name there."""
        raise NotImplementedError

    def whole_pictures(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, T) of whole pictures, flat, from those in their layout's shape or flat.

        Raises:
            ConfigError: codes of another number.
            DataError: codes that are no integers, or on another device.
        """
        codes = as_codes(codes, self.device)
        if codes.dim() < 2 or codes.shape[1:].numel() != self.config.sequence_length:
            raise ConfigError(
                f"codes must hold {self.config.sequence_length} a picture ({layout_name(self.config.code_layout)}), "
                f"got {tuple(codes.shape)}"
            )
        return codes.flatten(1)
