"""The product of several codebooks (Jegou et al. 2011): each quantizes its own dims of the features.

Shapes: N features, K codes, D dims, G codebooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from wvq.tokenizer.quantizers.codebook import Codebook
from wvq.tokenizer.quantizers.interface import Quantizer, QuantizerOutput


class ProductQuantizer(Quantizer):
    """G codebooks side by side, each of K codes of D / G dims, each quantizing its own part of the features.

    Codes have the number of codebooks as their last dim. Loss terms are means over the codebooks, the quantization
    error is their sum, utilization and perplexity are means. Source: Jegou et al. 2011.

    Args:
        codebooks: codebooks of one method, all of one size.
    """

    def __init__(self, codebooks: Iterable[Codebook]):
        codebooks = list(codebooks)
        super().__init__(codebooks[0].num_codes, sum(codebook.dim for codebook in codebooks))
        self.num_codebooks = len(codebooks)
        self.groups = nn.ModuleList(codebooks)

    @property
    def codebooks(self) -> list[Codebook]:
        """The G codebooks, each over the next dims of the features."""
        return cast("list[Codebook]", list(self.groups))  # a ModuleList does not know what it holds

    @property
    def weights(self) -> dict[str, float]:
        return self.codebooks[0].weights

    def reset_codebook(self) -> None:
        for codebook in self.codebooks:
            codebook.reset_codebook()

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [parameter for codebook in self.codebooks for parameter in codebook.codebook_parameters()]

    def freeze(self, frozen: bool = True) -> None:
        super().freeze(frozen)
        for codebook in self.codebooks:
            codebook.freeze(frozen)

    def scale_alignment(self, factor: float) -> None:
        for codebook in self.codebooks:
            codebook.scale_alignment(factor)

    def begin_step(self, parts: int) -> None:
        for codebook in self.codebooks:
            codebook.begin_step(parts)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes (..., G) int64 of features (..., D).

        Raises:
            DataError: features of another width, or not finite.
        """
        return torch.stack([codebook.encode(part) for codebook, part in self._split(features)], dim=-1)

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([codebook.prepare(part) for codebook, part in self._split(features)], dim=-1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.cat([codebook.lookup(codes[..., g]) for g, codebook in enumerate(self.codebooks)], dim=-1)

    def code_tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        return {"codebook": torch.stack([codebook.code_tensors(device)["codebook"] for codebook in self.codebooks])}

    def training_state(self) -> dict[str, Any]:
        return {"groups": [codebook.training_state() for codebook in self.codebooks]}

    def load_training_state(self, state: dict[str, Any], device: torch.device) -> None:
        for codebook, saved in zip(self.codebooks, state["groups"], strict=True):
            codebook.load_training_state(saved, device)

    def forward(self, features: torch.Tensor, update_statistics: bool = False) -> QuantizerOutput:
        outputs: list[QuantizerOutput] = [codebook(part, update_statistics) for codebook, part in self._split(features)]
        statistics = _mean_by_name([output.statistics for output in outputs])
        statistics["quantization_error"] = statistics["quantization_error"] * len(outputs)
        return QuantizerOutput(
            quantized=torch.cat([output.quantized for output in outputs], dim=-1),
            codes=torch.stack([output.codes for output in outputs], dim=-1),
            loss=torch.stack([output.loss for output in outputs]).mean(),
            losses=_mean_by_name([output.losses for output in outputs]),
            statistics=statistics,
        )

    def _split(self, features: torch.Tensor) -> Iterable[tuple[Codebook, torch.Tensor]]:
        self._require_width(features)
        return zip(self.codebooks, features.chunk(self.num_codebooks, dim=-1), strict=True)


def _mean_by_name(groups: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([values[name] for values in groups]).mean() for name in groups[0]}
