"""Published codebooks without an alignment: moving average ("ema"), CVQ ("online"), SimVQ ("linear").

Shapes: N features, K codes, D dims.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from wvq.checks import interval, or_null
from wvq.distributed import gather_rows, sum_over_processes
from wvq.models.config import option
from wvq.tokenizer.quantizers.interface import QuantizerConfig
from wvq.tokenizer.quantizers.nearest import nearest_codes
from wvq.tokenizer.quantizers.statistics import code_counts
from wvq.tokenizer.quantizers.vanilla import VectorQuantizer

DECAY = interval("(0, 1)")


class DecayConfig(QuantizerConfig):
    """Fields of methods with running statistics of their codes.

    Args:
        ema_decay: decay, in (0, 1), of the running statistics of "ema" and "online"; published values if None.
    """

    ema_decay: float | None = option(None, or_null(DECAY), identity=False, of_method=True)


class EMAQuantizer(VectorQuantizer):
    """Codes are moving averages of their features: k-means on a stream (van den Oord et al. 2017, appendix A.1).

    size <- decay size + (1 - decay) n, sum <- decay sum + (1 - decay) sum of features, e = sum / size. The sizes start
    at 0 and are smoothed after every step (Laplace), so that none stays 0. So a code without features moves out at
    first, then shrinks towards the origin along its ray, and is used again if features lie on it.
    """

    name = "ema"
    defaults = {"commitment_weight": 1.0}
    by_gradient = False
    decay = 0.8
    epsilon = 1e-5

    def __init__(self, config: DecayConfig):
        super().__init__(config)
        self.codebook.requires_grad_(False)
        self.decay = self.decay if config.ema_decay is None else config.ema_decay
        self._sizes: torch.Tensor | None = None  # K
        self._sums: torch.Tensor | None = None  # K D

    def draw_codebook(self) -> None:
        init.normal_(self.codebook, 0.0, 1 / self.num_codes)

    def codebook_parameters(self) -> list[nn.Parameter]:
        return []

    def losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, update_statistics: bool
    ) -> dict[str, torch.Tensor]:
        return {"commitment": F.mse_loss(features, vectors.detach())}

    @torch.no_grad()
    def update(self, features: torch.Tensor, codes: torch.Tensor) -> None:
        if self._sizes is None or self._sums is None:
            self._sizes, self._sums = torch.zeros_like(self.codebook[:, 0]), self.codebook.detach().clone()
        packed = features.new_zeros(self.num_codes, self.dim + 1)  # one tensor, one all-reduce
        packed.index_add_(0, codes, F.pad(features, (0, 1), value=1.0))
        sum_over_processes(packed)
        usable = packed.isfinite().all()  # a batch with NaN changes nothing
        packed = self.decay * torch.cat([self._sums, self._sizes[:, None]], dim=1) + (1 - self.decay) * packed
        sums, sizes = packed[:, :-1], packed[:, -1]
        total = sizes.sum()
        sizes = (sizes + self.epsilon) * (total / (total + self.num_codes * self.epsilon))
        self._sizes = torch.where(usable, sizes, self._sizes)
        self._sums = torch.where(usable, sums, self._sums)
        self.codebook.copy_(torch.where(usable, sums / sizes[:, None], self.codebook))

    def training_state(self) -> dict[str, Any]:
        if self._sizes is None or self._sums is None:
            return {}
        return {"sizes": self._sizes.cpu(), "sums": self._sums.cpu()}

    def load_training_state(self, state: dict[str, Any], device: torch.device) -> None:
        if state:
            self._sizes, self._sums = state["sizes"].to(device), state["sums"].to(device)


class OnlineQuantizer(VectorQuantizer):
    """CVQ: gradient, and every step codes of low use are pulled to features (Zheng and Vedaldi 2023, eqs. 4 to 6).

    p <- decay p + (1 - decay) share of the batch, a = exp(-10 K p / (1 - decay) - 1e-3), e <- (1 - a) e + a z*, where
    z* is the feature of the batch that is closest to e.
    """

    name = "online"
    by_gradient = False
    decay = 0.99

    def __init__(self, config: DecayConfig):
        super().__init__(config)
        self.decay = self.decay if config.ema_decay is None else config.ema_decay
        self._shares: torch.Tensor | None = None  # K

    @torch.no_grad()
    def update(self, features: torch.Tensor, codes: torch.Tensor) -> None:
        features = gather_rows(features)
        shares = sum_over_processes(code_counts(codes, self.num_codes)) / len(features)
        usable = features.isfinite().all()
        if self._shares is None:
            self._shares = torch.zeros_like(shares)
        self._shares = torch.where(usable, self.decay * self._shares + (1 - self.decay) * shares, self._shares)
        pull = torch.exp(-10 * self.num_codes * self._shares / (1 - self.decay) - 1e-3)[:, None] * usable
        if features.device.type == "cpu":
            # Most codes are not moved by as much as a bit: skip their search. A GPU would have to wait for the list.
            chosen = (pull[:, 0] > 1e-9).nonzero()[:, 0]
            closest = features[nearest_codes(self.codebook[chosen], features)]
            self.codebook[chosen] = self.codebook[chosen].lerp(closest, pull[chosen])
        else:
            closest = features[nearest_codes(self.codebook, features)].nan_to_num(0.0, 0.0, 0.0)
            self.codebook.lerp_(closest, pull)

    def training_state(self) -> dict[str, Any]:
        return {} if self._shares is None else {"shares": self._shares.cpu()}

    def load_training_state(self, state: dict[str, Any], device: torch.device) -> None:
        if state:
            self._shares = state["shares"].to(device)


class LinearQuantizer(VectorQuantizer):
    """SimVQ: frozen random codes behind one trained linear map, through which all codes move (Zhu et al. 2024)."""

    name = "linear"
    by_gradient = False

    def __init__(self, config: QuantizerConfig):
        super().__init__(config)
        self.codebook.requires_grad_(False)
        self.map = nn.Linear(self.dim, self.dim)

    def draw_codebook(self) -> None:
        init.normal_(self.codebook, 0.0, 1.0)
        bound = self.dim**-0.5  # as torch starts a linear layer
        init.uniform_(self.map.weight, -bound, bound)
        init.uniform_(self.map.bias, -bound, bound)

    def codebook_parameters(self) -> list[nn.Parameter]:
        return list(self.map.parameters())

    def code_vectors(self) -> torch.Tensor:
        # All codes at once, also for a lookup of few: a product of another size could round differently.
        with torch.autocast(self.codebook.device.type, enabled=False):
            return self.map(self.codebook)
