"""The interface of every quantizer: one codebook, a product of several, or one at several scales.

Features in; quantized, codes, named losses and batch statistics out. Shapes: N features, K codes, D dims.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from wvq.checks import FLAG, POSITIVE, Rule, integer, number, one_of, or_null
from wvq.errors import DataError
from wvq.models.config import StrictConfig, option
from wvq.tokenizer.quantizers.estimators import GRADIENT_ESTIMATORS
from wvq.tokenizer.quantizers.nearest import SIMILARITIES

CODE_RANGE = Rule("below 2**31, the range of the integers that hold a code", lambda value: value < 2**31)
WEIGHT = or_null(number())


class QuantizerConfig(StrictConfig):
    """The fields of a tokenizer's config that all quantizers read.

    Args:
        quantizer: name of the method (:mod:`wvq.tokenizer.quantizers.registry`).
        num_codes: size K of a codebook.
        code_dim: dims D of the quantized features, over all codebooks.
        num_groups: codebooks G of a product quantizer; each has K codes of D / G dims.
        l2_normalize: compare features and codes at length 1, and decode codes at length 1 (Yu et al. 2021, ViT-VQGAN;
            LlamaGen). For "vanilla" and the methods whose codes an alignment moves by gradient, on one scale.
        similarity: which code a feature takes: ``euclidean``, the nearest, or ``dot``, that of the largest inner
            product (Shi et al. 2024, IBQ). ``dot`` is for the same methods, on any number of scales.
        gradient_estimator: how the decoder's gradient reaches the encoder, "ste" or "rotation".
        codebook_weight, commitment_weight, alignment_weight: alpha, beta and gamma in the quantizer's loss; the
            method's published values if None.
        target_scale: tau > 0; an alignment matches the codes to the features' distribution widened by tau.
        alignment_units: of the distances of "wasserstein" and "sliced": ``relative``, to the largest standard deviation
            of the features, or ``absolute``, as in the authors' code of arXiv 2506.15078.
    """

    quantizer: str = option("sliced")
    num_codes: int = option(16_384, integer(), CODE_RANGE)
    code_dim: int = option(8, integer())
    num_groups: int = option(1, integer())
    l2_normalize: bool = option(False, FLAG, later=True)
    similarity: str = option("euclidean", one_of(SIMILARITIES), of_method=True, later=True)
    gradient_estimator: str = option("ste", one_of(GRADIENT_ESTIMATORS), identity=False)
    codebook_weight: float | None = option(None, WEIGHT, identity=False, of_method=True)
    commitment_weight: float | None = option(None, WEIGHT, identity=False, of_method=True)
    alignment_weight: float | None = option(None, WEIGHT, identity=False, of_method=True)
    target_scale: float = option(1.0, POSITIVE, identity=False, of_method=True)
    alignment_units: str = option(
        "relative", one_of(("relative", "absolute")), identity=False, of_method=True, later=True
    )

    @property
    def codebook_dim(self) -> int:
        """Dims of a code of one codebook."""
        return self.code_dim // self.num_groups


@dataclass
class QuantizerOutput:
    """Output of a quantizer.

    Attributes:
        quantized: features replaced by their codes' vectors, shape of the features, with the estimator's gradient.
        codes: index of each feature's code, int64 in [0, K): the features' shape without the last dim, with the number
            of codebooks as last dim in a product quantizer; (B, T) of several scales.
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


class Measurement(Protocol):
    """Figures of a quantizer over an evaluation set, taken batch by batch, by any number of processes."""

    def update(self, features: torch.Tensor, codes: torch.Tensor) -> None:
        """Add prepared features (B, h, w, D) and their codes."""

    def reduce(self) -> None:
        """Sum over all processes."""

    def compute(self) -> dict[str, float | list[float]]:
        """The figures by name."""


class Quantizer(nn.Module, ABC):
    """Quantizes features: the part between encoder and decoder, for codes of any layout.

    Args:
        num_codes: size K of a codebook.
        dim: dims D of the features.

    Attributes:
        frozen: whether it stays unchanged in training.
        num_codebooks: codes at each position of the grid, the last dim of the codes where it is more than one.
    """

    num_codebooks: int = 1

    def __init__(self, num_codes: int, dim: int):
        super().__init__()
        self.num_codes, self.dim = num_codes, dim
        self.frozen = False

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Weight of each term of the loss, by the name of its config field."""

    @abstractmethod
    def reset_codebook(self) -> None:
        """Draw the codes again, as at the start of a training."""

    @abstractmethod
    def codebook_parameters(self) -> list[nn.Parameter]:
        """The trained parameters that belong in the codebook's own optimiser group."""

    def scale_conv_parameters(self) -> list[nn.Parameter]:
        """The parameters of the convolutions that scales share; none without them."""
        return []

    @abstractmethod
    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., D) in the space of the codes."""

    @abstractmethod
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes, int64, of features (..., D).

        Raises:
            DataError: features of another shape, or not finite.
        """

    @abstractmethod
    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Quantized features (..., D) of codes."""

    @torch.no_grad()
    def code_tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The tensors that make features of codes, on the CPU: ``codebook`` (K, D), or (G, K, D / G) of G codebooks.

        A quantizer of several scales adds ``conv_weight`` (M, D, D, 3, 3) and ``conv_bias`` (M, D) of its convolutions.

        Args:
            device: where the quantizer is.
        """
        return {"codebook": self.lookup(torch.arange(self.num_codes, device=device)).cpu()}

    def lookup_scales(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Quantized features (..., D) of the first scale of the codes, of the first two, ..., of all."""
        return [self.lookup(codes)]

    @abstractmethod
    def forward(self, features: torch.Tensor, update_statistics: bool = False) -> QuantizerOutput:
        """Quantize features (..., D).

        Args:
            features: (..., D); (B, h, w, D) where there are several scales.
            update_statistics: count this batch in running statistics of the features, and make the updates that need
                no gradient (in training steps only; see :meth:`begin_step`). Features that are not finite then pass,
                and change no statistic: the training loop skips such a step without waiting for the device.

        Raises:
            DataError: features of another shape, or not finite.
        """

    def freeze(self, frozen: bool = True) -> None:
        """Leave the quantizer unchanged in training steps, which then do not wait for the device to look for NaN."""
        self.frozen = frozen

    @abstractmethod
    def scale_alignment(self, factor: float) -> None:
        """Multiply the configured weight of the alignment by a factor from now on, if the method has one."""

    @abstractmethod
    def begin_step(self, parts: int) -> None:
        """Announce that the next training step comes in ``parts`` batches, one forward pass each; 1 if never called.

        Running statistics and updates without gradient then move once, in the last pass, over all of them joined.
        """

    @abstractmethod
    def training_state(self) -> dict[str, Any]:
        """State that an exact resume needs beside the weights."""

    @abstractmethod
    def load_training_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the state that :meth:`training_state` gave."""

    def measurements(self, device: torch.device) -> list[Measurement]:
        """Measurements of an evaluation that this quantizer has beside E, U and C."""
        return []

    def _require_finite(self, features: torch.Tensor, update_statistics: bool = False) -> None:
        # Training steps do not look: they would wait for the device.
        if update_statistics or (self.frozen and torch.is_grad_enabled()):
            return
        if not bool(features.isfinite().all()):
            raise DataError("features must be finite, got NaN or infinite values; look at the network that made them")

    def _require_width(self, features: torch.Tensor) -> None:
        if features.shape[-1] != self.dim:
            raise DataError(f"features have {features.shape[-1]} dims, but code_dim is {self.dim}; they must be equal")
