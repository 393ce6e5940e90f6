"""Vector quantizers behind one interface and one registry: features in; quantized, codes, losses and statistics out.

Shapes: B pictures, h x w grid, N = B h w features, K codes, D dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from wvq.errors import ConfigError, near_match
from wvq.tokenizer.alignment import (
    MomentWindow,
    gather_features,
    gaussian_wasserstein,
    random_directions,
    sliced_wasserstein,
)
from wvq.tokenizer.metrics import code_perplexity
from wvq.tokenizer.nearest import nearest_codes


@dataclass
class QuantizerOutput:
    """What a quantizer returns.

    Attributes:
        quantized: features replaced by their codes' vectors, shape of the features, with the straight-through gradient.
        codes: index of each feature's code, shape of the features without their last dim, int64 in [0, K).
        loss: weighted sum of ``losses``; 0-d.
        losses: each unweighted term under its name, detached; 0-d.
        statistics: quantization_error, utilization and perplexity of this batch alone; detached 0-d. For the training
            log: a criterion for comparison is taken over a whole evaluation set.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    statistics: dict[str, torch.Tensor]


class _StraightThrough(torch.autograd.Function):
    # Exactly the code's vector forward; z + (q - z) would round it, and decode(codes) would differ from forward.
    @staticmethod
    def forward(ctx, features, quantized):
        return quantized.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class VectorQuantizer(nn.Module):
    """Codebook of K vectors, trained by gradient: the "vanilla" quantizer (van den Oord et al. 2017, eq. 3).

    loss = alpha |sg(z) - e|^2 + beta |z - sg(e)|^2, each a mean over all elements.
    """

    # Published weights and start; a config may override each by its own field.
    defaults = {"codebook_weight": 1.0, "commitment_weight": 1.0, "alignment_weight": 0.0}

    def __init__(self, config):
        super().__init__()
        self.num_codes, self.dim = config.num_codes, config.code_dim
        self.weights = {name: _first(getattr(config, name), value) for name, value in self.defaults.items()}
        if self.weights["alignment_weight"] and type(self).alignment is VectorQuantizer.alignment:
            raise ConfigError(f'alignment_weight must be 0 or null: quantizer "{config.quantizer}" has no alignment')
        self.codebook = nn.Parameter(torch.empty(self.num_codes, self.dim))

    def reset_codebook(self) -> None:
        init.uniform_(self.codebook, -1 / self.num_codes, 1 / self.num_codes)

    def codebook_parameters(self) -> list[nn.Parameter]:
        """The parameters that belong into the codebook's own optimiser group."""
        return [self.codebook]

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors (..., D) of codes (...)."""
        return F.embedding(codes, self.codebook)

    def alignment(self, features: torch.Tensor, update_statistics: bool) -> torch.Tensor | None:
        """Distance between the distributions of features (N, D) and codes, or None for a codebook without alignment."""
        return None

    def training_state(self) -> dict:
        """What an exact resume needs beside the weights."""
        return {}

    def load_training_state(self, state: dict, device: torch.device) -> None:
        pass

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes (...) int64 of features (..., D)."""
        return nearest_codes(features.reshape(-1, self.dim), self.codebook).reshape(features.shape[:-1])

    def forward(self, features: torch.Tensor, update_statistics: bool = False) -> QuantizerOutput:
        """Quantize features (..., D).

        Args:
            features: (..., D); the last dim is the code's.
            update_statistics: count this batch in running statistics of the features (in training steps only).
        """
        with torch.autocast(features.device.type, enabled=False):
            flat = features.float().reshape(-1, self.dim)  # N D
            codes = self.encode(flat)
            vectors = self.lookup(codes)
            losses = {
                "codebook": F.mse_loss(vectors, flat.detach()),
                "commitment": F.mse_loss(flat, vectors.detach()),
            }
            if self.weights["alignment_weight"] and (distance := self.alignment(flat, update_statistics)) is not None:
                losses["alignment"] = distance
            loss = sum(self.weights[f"{name}_weight"] * value for name, value in losses.items())
            quantized = _StraightThrough.apply(flat, vectors.detach()).reshape(features.shape)
        return QuantizerOutput(
            quantized=quantized.to(features.dtype),
            codes=codes.reshape(features.shape[:-1]),
            loss=loss,
            losses={name: value.detach() for name, value in losses.items()},
            statistics=self._batch_statistics(codes, losses["commitment"].detach() * self.dim),
        )

    @torch.no_grad()
    def _batch_statistics(self, codes: torch.Tensor, error: torch.Tensor) -> dict[str, torch.Tensor]:
        # scatter_add and not bincount, which waits for the GPU to learn its output's size.
        counts = torch.zeros(self.num_codes, device=codes.device)
        counts.scatter_add_(0, codes, torch.ones_like(codes, dtype=counts.dtype))
        return {
            "quantization_error": error,
            "utilization": (counts > 0).float().mean(),
            "perplexity": code_perplexity(counts),
        }


class WassersteinQuantizer(VectorQuantizer):
    """The paper's quantizer: codes follow the features' Gaussian moments (arXiv 2506.15078).

    loss = vanilla + gamma L_W over the moments of the last ``window_size`` features; gradient of L_W to the codes only.
    """

    defaults = {"codebook_weight": 1.0, "commitment_weight": 0.1, "alignment_weight": 0.5}

    def __init__(self, config):
        super().__init__(config)
        self.window = MomentWindow(config.window_size)

    def reset_codebook(self) -> None:
        init.normal_(self.codebook, 0.0, 0.01)

    def alignment(self, features: torch.Tensor, update_statistics: bool) -> torch.Tensor:
        # Outside of training steps: this process's batch alone, without a trace, and without waiting for other ranks.
        window = self.window if update_statistics else MomentWindow(self.window.size)
        window.update(features, joined=update_statistics)
        return gaussian_wasserstein(*window.moments(), self.codebook)

    def training_state(self) -> dict:
        return {"window": self.window.state_dict()}

    def load_training_state(self, state: dict, device: torch.device) -> None:
        self.window.load_state_dict(state["window"], device)


class SlicedWassersteinQuantizer(VectorQuantizer):
    """Codes follow the features' whole distribution by the sliced Wasserstein distance, with no Gaussian assumption."""

    defaults = WassersteinQuantizer.defaults

    def __init__(self, config):
        super().__init__(config)
        self.num_projections = config.num_projections

    def reset_codebook(self) -> None:
        init.normal_(self.codebook, 0.0, 0.01)

    def alignment(self, features: torch.Tensor, update_statistics: bool) -> torch.Tensor:
        directions = random_directions(self.num_projections, self.dim, features.device, joined=update_statistics)
        features = gather_features(features) if update_statistics else features
        return sliced_wasserstein(features, self.codebook, directions)


QUANTIZERS: dict[str, type[VectorQuantizer]] = {
    "vanilla": VectorQuantizer,
    "wasserstein": WassersteinQuantizer,
    "sliced": SlicedWassersteinQuantizer,
}


def build_quantizer(config) -> VectorQuantizer:
    """The quantizer that ``config.quantizer`` names.

    Raises:
        ConfigError: no quantizer of that name is registered.
    """
    check_quantizer_name(config.quantizer)
    return QUANTIZERS[config.quantizer](config)


def check_quantizer_name(name: str) -> None:
    if not isinstance(name, str) or name not in QUANTIZERS:
        raise ConfigError(
            f'quantizer "{name}" is unknown{near_match(name, QUANTIZERS)}; one of {", ".join(QUANTIZERS)}'
        )


def _first(value, default):
    return default if value is None else value
