"""The codebook trained by gradient ("vanilla"), which most other methods build on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from wvq.tokenizer.quantizers.codebook import Codebook
from wvq.tokenizer.quantizers.interface import QuantizerConfig
from wvq.tokenizer.quantizers.nearest import nearest_codes


class VectorQuantizer(Codebook):
    """Codebook of K vectors, trained by gradient: the "vanilla" quantizer (van den Oord et al. 2017, eq. 3).

    loss = alpha |sg(z) - e|^2 + beta |z - sg(e)|^2, each a mean over all elements.
    """

    name = "vanilla"
    defaults = {"codebook_weight": 1.0, "commitment_weight": 1.0}

    def __init__(self, config: QuantizerConfig):
        super().__init__(config)
        self.codebook = nn.Parameter(torch.empty(self.num_codes, self.dim))

    def reset_codebook(self) -> None:
        init.uniform_(self.codebook, -1 / self.num_codes, 1 / self.num_codes)

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [self.codebook]

    def assign(self, vectors: torch.Tensor) -> torch.Tensor:
        return nearest_codes(vectors, self.codebook)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes, self.codebook)

    def losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, update_statistics: bool
    ) -> dict[str, torch.Tensor]:
        return {
            "codebook": F.mse_loss(vectors, features.detach()),
            "commitment": F.mse_loss(features, vectors.detach()),
        }
