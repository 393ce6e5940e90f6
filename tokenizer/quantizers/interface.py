"""The interface that all quantizers share.

Features in; quantized, codes, named losses and batch statistics out. Shapes: N features, K codes, D dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from wvq.errors import ConfigError, DataError
from wvq.tokenizer.quantizers.estimators import GRADIENT_ESTIMATORS
from wvq.tokenizer.quantizers.statistics import code_perplexity


@dataclass
class QuantizerOutput:
    """What a quantizer returns.

    Attributes:
        quantized: features replaced by their codes' vectors, shape of the features, with the estimator's gradient.
        codes: index of each feature's code, int64 in [0, K): the features' shape without the last dim, or with the
            number of codebooks as last dim in a product quantizer.
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


class Quantizer(nn.Module):
    """One codebook, learned or fixed. Subclasses give ``assign``, ``lookup`` and ``losses``."""

    # Published weight of each term; a config may override each by its own field. A weight that is not listed must be
    # left out of the config, or be 0.
    defaults: dict[str, float] = {}
    frozen = False  # in training: its steps then wait for no device to look for NaN, as with update_statistics
    aligned = False  # whether codes are matched to the features' distribution, so that a target scale means something

    def __init__(self, config):
        super().__init__()
        self.num_codes, self.dim = config.num_codes, config.code_dim
        self.weights = {name: first_given(getattr(config, name), value) for name, value in self.defaults.items()}
        self.estimate = GRADIENT_ESTIMATORS[config.gradient_estimator]
        self._parts: int = 1  # batches that a training step is cut into
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # features and codes of those of the step under way

    @classmethod
    def check(cls, config) -> None:
        """Raise ConfigError, naming the field, if ``config`` asks for something that this quantizer does not have."""
        for name in WEIGHTS:
            if getattr(config, name) and name not in cls.defaults:
                what = "no alignment" if name == "alignment_weight" else f"no {name.removesuffix('_weight')} loss"
                raise ConfigError(f'{name} must be 0 or null: quantizer "{config.quantizer}" has {what}')
        if config.target_scale != 1 and not cls.aligned:
            raise ConfigError(f'target_scale must be 1: quantizer "{config.quantizer}" has no alignment')

    def reset_codebook(self) -> None:
        """Set the codebook to its start."""

    def codebook_parameters(self) -> list[nn.Parameter]:
        """The trained parameters that belong into the codebook's own optimiser group."""
        return []

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """Features (N, D) in the space of the codes; the identity for a learned codebook."""
        return features

    def assign(self, vectors: torch.Tensor) -> torch.Tensor:
        """Codes (N,) of the codes nearest to vectors (N, D) in the space of the codes."""
        raise NotImplementedError

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors (..., D) of codes (...)."""
        raise NotImplementedError

    def losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, update_statistics: bool
    ) -> dict[str, torch.Tensor]:
        """Loss terms by name, from prepared features (N, D), their vectors (N, D) and codes (N,)."""
        raise NotImplementedError

    def step_losses(self, features: torch.Tensor, joined: bool) -> dict[str, torch.Tensor]:
        """Loss terms by name that hold the codes against all features (N, D) of a step at once, detached ones.

        Args:
            joined: take in the features of all processes and count them in running statistics; else these alone,
                without a trace and without waiting for others.
        """
        return {}

    def update(self, features: torch.Tensor, codes: torch.Tensor) -> None:
        """Move codes without gradient after the forward pass of a whole training step; features (N, D), codes (N,)."""

    def begin_step(self, parts: int) -> None:
        """Say that the next training step comes in so many batches, one forward pass each; 1 until it is said.

        Running statistics and updates without gradient then move once, in the last pass, over all of them joined.
        """
        self._parts, self._seen = parts, []

    def terms(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, update_statistics: bool
    ) -> dict[str, torch.Tensor]:
        """All loss terms of a forward pass, after which the updates without gradient are made; arguments of `losses`.

        Of a step in several parts, the terms of :meth:`step_losses` are in the last one alone, as many times as there
        are parts: the mean over the parts is the loss of one batch.
        """
        losses = self.losses(features, vectors, codes, update_statistics)
        if not update_statistics:
            return losses | self.step_losses(features.detach(), joined=False)
        self._seen.append((features.detach(), codes))
        if len(self._seen) < self._parts:
            return losses
        whole = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*self._seen, strict=True)]
        self._seen = []
        losses |= {name: self._parts * value for name, value in self.step_losses(whole[0], joined=True).items()}
        self.update(*whole)
        return losses

    def training_state(self) -> dict:
        """What an exact resume needs beside the weights."""
        return {}

    def load_training_state(self, state: dict, device: torch.device) -> None:
        """Take up the state that :meth:`training_state` gave."""
        pass

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes (...) int64 of features (..., D).

        Raises:
            DataError: features of another width, or not finite.
        """
        flat = self._flat(features)
        require_finite(flat)
        return self.assign(self.prepare(flat)).reshape(features.shape[:-1])

    def forward(self, features: torch.Tensor, update_statistics: bool = False) -> QuantizerOutput:
        """Quantize features (..., D).

        Args:
            features: (..., D); the last dim is the code's.
            update_statistics: count this batch in running statistics of the features, and make the updates that need
                no gradient (in training steps only; see :meth:`begin_step`). Features that are not finite then pass,
                and change no statistic: the training loop skips such a step without waiting for the device.

        Raises:
            DataError: features of another width, or not finite.
        """
        with torch.autocast(features.device.type, enabled=False):
            flat = self._flat(features)
            if not update_statistics and not (self.frozen and torch.is_grad_enabled()):
                require_finite(flat)
            flat = self.prepare(flat)
            codes = self.assign(flat.detach())
            vectors = self.lookup(codes)
            losses = self.terms(flat, vectors, codes, update_statistics)
            loss = sum((self.weights[f"{name}_weight"] * value for name, value in losses.items()), flat.new_zeros(()))
            quantized = self.estimate(flat, vectors).reshape(features.shape)
        return QuantizerOutput(
            quantized=quantized.to(features.dtype),
            codes=codes.reshape(features.shape[:-1]),
            loss=loss,
            losses={name: value.detach() for name, value in losses.items()},
            statistics=self._batch_statistics(flat.detach(), vectors.detach(), codes),
        )

    def _flat(self, features: torch.Tensor) -> torch.Tensor:
        require_width(features, self.dim)
        return features.float().reshape(-1, self.dim)  # N D

    @torch.no_grad()
    def _batch_statistics(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        counts = code_counts(codes, self.num_codes)
        return {
            "quantization_error": (features - vectors).square().sum(1).mean(),
            "utilization": (counts > 0).float().mean(),
            "perplexity": code_perplexity(counts),
        }


WEIGHTS = ("codebook_weight", "commitment_weight", "alignment_weight", "entropy_weight")


def first_given(value, default):
    """The value, or the default where it is None."""
    return default if value is None else value


def code_counts(codes: torch.Tensor, num_codes: int) -> torch.Tensor:
    """How often each of the K codes occurs, (K,) float32; codes (N,)."""
    # scatter_add and not bincount, which waits for the GPU to learn its output's size.
    counts = torch.zeros(num_codes, device=codes.device)
    return counts.scatter_add_(0, codes, torch.ones_like(codes, dtype=counts.dtype))


def require_width(features: torch.Tensor, dim: int) -> None:
    """
    Raises:
        DataError: features (..., D) of another width than the codes.
    """
    if features.shape[-1] != dim:
        raise DataError(f"features have {features.shape[-1]} dims, but code_dim is {dim}; they must be equal")


def require_finite(features: torch.Tensor) -> None:
    """
    Raises:
        DataError: NaN or infinite features.
    """
    if not bool(features.isfinite().all()):
        raise DataError("features must be finite, got NaN or infinite values; look at the network that made them")
