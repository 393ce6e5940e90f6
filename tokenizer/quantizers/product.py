"""The product of several codebooks (Jegou et al. 2011): each quantizes its own dims of the features.

Shapes: N features, K codes, D dims, G codebooks.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from wvq.tokenizer.quantizers.interface import Quantizer, QuantizerOutput, require_width


class ProductQuantizer(nn.Module):
    """G codebooks side by side, each of K codes of D / G dims, each quantizing its own part of the features.

    Codes have the number of codebooks as their last dim. Loss terms are means over the codebooks, the quantization
    error is their sum, utilization and perplexity are means. Source: Jegou et al. 2011.

    Args:
        config: of the tokenizer, for all codebooks together.
        method: the quantizer that each codebook is.
    """

    def __init__(self, config, method: type[Quantizer]):
        super().__init__()
        part = copy.copy(config)
        part.code_dim, part.num_groups = config.code_dim // config.num_groups, 1
        self.num_codes, self.dim = config.num_codes, config.code_dim
        self.groups = nn.ModuleList(method(part) for _ in range(config.num_groups))

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the loss."""
        return self.groups[0].weights

    def reset_codebook(self) -> None:
        """Draw the codes of all codebooks."""
        for group in self.groups:
            group.reset_codebook()

    def codebook_parameters(self) -> list[nn.Parameter]:
        """Those of all codebooks."""
        return [parameter for group in self.groups for parameter in group.codebook_parameters()]

    def begin_step(self, parts: int) -> None:
        """As :meth:`Quantizer.begin_step`."""
        for group in self.groups:
            group.begin_step(parts)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes (..., G) int64 of features (..., D)."""
        return torch.stack([group.encode(part) for group, part in self._parts(features)], dim=-1)

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """Features (N, D) in the space of the codes."""
        return torch.cat([group.prepare(part) for group, part in self._parts(features)], dim=-1)

    def assign(self, vectors: torch.Tensor) -> torch.Tensor:
        """Codes (N, G) of the codes nearest to vectors (N, D) in the space of the codes."""
        return torch.stack([group.assign(part) for group, part in self._parts(vectors)], dim=-1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors (..., D) of codes (..., G)."""
        return torch.cat([group.lookup(codes[..., g]) for g, group in enumerate(self.groups)], dim=-1)

    def training_state(self) -> dict:
        """The state of an exact resume."""
        return {"groups": [group.training_state() for group in self.groups]}

    def load_training_state(self, state: dict, device: torch.device) -> None:
        """Take up the state that :meth:`training_state` gave."""
        for group, saved in zip(self.groups, state["groups"], strict=True):
            group.load_training_state(saved, device)

    def forward(self, features: torch.Tensor, update_statistics: bool = False) -> QuantizerOutput:
        """As :meth:`Quantizer.forward`, each codebook over its part of the features."""
        outputs = [group(part, update_statistics) for group, part in self._parts(features)]
        statistics = _mean_by_name([output.statistics for output in outputs])
        statistics["quantization_error"] = statistics["quantization_error"] * len(outputs)
        return QuantizerOutput(
            quantized=torch.cat([output.quantized for output in outputs], dim=-1),
            codes=torch.stack([output.codes for output in outputs], dim=-1),
            loss=torch.stack([output.loss for output in outputs]).mean(),
            losses=_mean_by_name([output.losses for output in outputs]),
            statistics=statistics,
        )

    def _parts(self, features: torch.Tensor):
        require_width(features, self.dim)
        return zip(self.groups, features.chunk(len(self.groups), dim=-1), strict=True)


def _mean_by_name(groups: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([values[name] for values in groups]).mean() for name in groups[0]}
