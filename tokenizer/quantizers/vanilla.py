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
    by_gradient = True

    def __init__(self, config: QuantizerConfig):
        super().__init__(config)
        self.l2_normalize, self.similarity = config.l2_normalize, config.similarity
        self.codebook = nn.Parameter(torch.empty(self.num_codes, self.dim))

    def reset_codebook(self) -> None:
        self.draw_codebook()
        if self.l2_normalize:
            init.copy_(self.codebook, F.normalize(self.codebook, dim=1))

    def draw_codebook(self) -> None:
        """Draw the codes' parameters."""
        init.uniform_(self.codebook, -1 / self.num_codes, 1 / self.num_codes)

    def codebook_parameters(self) -> list[nn.Parameter]:
        return [self.codebook]

    def code_vectors(self) -> torch.Tensor:
        """The vectors (K, D) of the codes: what features are compared with and what is decoded."""
        # All at once, also for a lookup of few: sums of another number of rows could round differently.
        return F.normalize(self.codebook, dim=1) if self.l2_normalize else self.codebook

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features, dim=-1) if self.l2_normalize else features

    @torch.no_grad()
    def assign(self, vectors: torch.Tensor) -> torch.Tensor:
        return nearest_codes(vectors, self.code_vectors(), similarity=self.similarity)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes, self.code_vectors())

    def losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, update_statistics: bool
    ) -> dict[str, torch.Tensor]:
        return {
            "codebook": F.mse_loss(vectors, features.detach()),
            "commitment": F.mse_loss(features, vectors.detach()),
        }
