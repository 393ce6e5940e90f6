"""Codebook, the base of all methods: one set of codes, learned or fixed, and its part in a training step.

Shapes: N features, K codes, D dims.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from wvq.errors import ConfigError
from wvq.precision import at_least_float32
from wvq.tokenizer.quantizers.estimators import GRADIENT_ESTIMATORS
from wvq.tokenizer.quantizers.interface import Quantizer, QuantizerConfig, QuantizerOutput
from wvq.tokenizer.quantizers.statistics import code_counts, code_perplexity


class Codebook(Quantizer):
    """One codebook, learned or fixed. Subclasses give ``assign``, ``lookup`` and ``losses``.

    Attributes:
        name: by which a config chooses the method.
        defaults: published weight of each term of the loss; a config may override each by its own field. A weight that
            is not listed must be left out of the config, or be 0.
        aligned: whether codes are matched to the features' distribution, so that a target scale means something.
        by_gradient: whether gradients alone move the codes, so that they may be compared at length 1 or by products.
        has_units: whether the alignment is a distance, which has the features' unit or is relative to their spread.
    """

    name: ClassVar[str]
    defaults: ClassVar[dict[str, float]] = {}
    aligned: ClassVar[bool] = False
    by_gradient: ClassVar[bool] = False
    has_units: ClassVar[bool] = False

    def __init__(self, config: QuantizerConfig):
        super().__init__(config.num_codes, config.codebook_dim)
        given = {name: getattr(config, name) for name in self.defaults}
        self._weights = {name: self.defaults[name] if value is None else value for name, value in given.items()}
        self.estimate = GRADIENT_ESTIMATORS[config.gradient_estimator]
        self._parts: int = 1  # batches that a training step is cut into
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # features and codes of the current step's batches

    @classmethod
    def check(cls, config: QuantizerConfig) -> None:
        """Check the fields that the method reads.

        Args:
            config: config of a tokenizer, each field within its own range.

        Raises:
            ConfigError: a field sets something that this method does not have.
        """
        for name in config.fields():
            if name.endswith("_weight") and getattr(config, name) and name not in cls.defaults:
                missing = "no alignment" if name == "alignment_weight" else f"no {name.removesuffix('_weight')} loss"
                raise ConfigError(f'{name} must be 0 or null: quantizer "{config.quantizer}" has {missing}')
        if config.target_scale != 1 and not cls.aligned:
            raise ConfigError(f'target_scale must be 1: quantizer "{config.quantizer}" has no alignment')
        if config.alignment_units != "relative" and not cls.has_units:
            raise ConfigError(f'alignment_units must be relative: quantizer "{config.quantizer}" has no distance')
        for name, value, given in (
            ("l2_normalize", False, config.l2_normalize),
            ("similarity", "euclidean", config.similarity),
        ):
            if given != value and not cls.by_gradient:
                reason = f'quantizer "{config.quantizer}" does not move its codes by gradients alone'
                raise ConfigError(f"{name} must be {str(value).lower()}: {reason}")
        if config.l2_normalize and config.target_scale != 1:
            raise ConfigError("target_scale must be 1 with l2_normalize: codes of length 1 cannot spread any wider")

    @property
    def weights(self) -> dict[str, float]:
        return self._weights

    def reset_codebook(self) -> None:
        pass

    def codebook_parameters(self) -> list[nn.Parameter]:
        return []

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        return features

    @abstractmethod
    def assign(self, vectors: torch.Tensor) -> torch.Tensor:
        """For each vector (N, D) in the space of the codes the nearest code, (N,)."""

    @abstractmethod
    def losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, update_statistics: bool
    ) -> dict[str, torch.Tensor]:
        """Loss terms by name, from prepared features (N, D), their vectors (N, D) and codes (N,)."""

    def step_losses(self, features: torch.Tensor, joined: bool) -> dict[str, torch.Tensor]:
        """Loss terms by name that compare the codes with all features (N, D) of a step at once, detached ones.

        Args:
            features: all features of the step.
            joined: include the features of all processes and count them in running statistics; else these alone,
                without changing statistics and without waiting for others.
        """
        return {}

    def update(self, features: torch.Tensor, codes: torch.Tensor) -> None:
        """Move codes without gradient after the forward pass of a whole training step; features (N, D), codes (N,)."""

    def scale_alignment(self, factor: float) -> None:
        pass

    def begin_step(self, parts: int) -> None:
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
        all_features, all_codes = (
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*self._seen, strict=True)
        )
        self._seen = []
        losses |= {name: self._parts * value for name, value in self.step_losses(all_features, joined=True).items()}
        self.update(all_features, all_codes)
        return losses

    def training_state(self) -> dict[str, Any]:
        return {}

    def load_training_state(self, state: dict[str, Any], device: torch.device) -> None:
        pass

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes (...) int64 of features (..., D).

        Raises:
            DataError: features of another width, or not finite.
        """
        flat = self._flat(features)
        self._require_finite(flat)
        return self.assign(self.prepare(flat)).reshape(features.shape[:-1])

    def forward(self, features: torch.Tensor, update_statistics: bool = False) -> QuantizerOutput:
        with torch.autocast(features.device.type, enabled=False):
            flat = self._flat(features)
            self._require_finite(flat, update_statistics)
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
        self._require_width(features)
        return at_least_float32(features).reshape(-1, self.dim)  # N D

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
