"""One codebook at several scales, each on what the coarser ones left over (Tian et al. 2024, "Visual Autoregressive
Modeling: Scalable Image Generation via Next-Scale Prediction", algorithms 1 and 2).

Shapes: B pictures, D dims, h w grid, r c map of a scale, S scales, T codes of a picture (the sum of all r c), K codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from wvq.checks import Checker, integer, interval, list_of, number, one_of, or_null
from wvq.distributed import sum_over_processes
from wvq.errors import DataError
from wvq.models.config import option
from wvq.models.scale_maps import CONV_TABLES, RISING, SCALES, average_to, shared_convs, spread
from wvq.precision import at_least_float32, exact_float32
from wvq.tokenizer.quantizers.alignment import feature_scale, gaussian_wasserstein, packed_moments, packed_sums
from wvq.tokenizer.quantizers.codebook import Codebook
from wvq.tokenizer.quantizers.interface import Measurement, Quantizer, QuantizerConfig, QuantizerOutput
from wvq.tokenizer.quantizers.statistics import code_counts, code_perplexity

SCALE_WEIGHTS = list_of(number(), "a list of numbers of at least 0")


class MultiScaleConfig(QuantizerConfig):
    """Fields of several scales.

    Args:
        scales: sides of the maps of a multi-scale quantizer, rising up to the side of the grid; of a grid that is not
            square, the shorter sides (:mod:`wvq.data.layout`); None for one map.
        num_scale_convs: 3 x 3 convolutions that neighbouring scales share, at most one a scale; 0 for none.
        scale_conv_table: which of them a scale takes (:func:`wvq.models.scale_maps.shared_convs`): ``var``, as in VAR's
            models, or ``even``, which tokenizers that were saved without the field keep; ``var`` if there are scales
            and this is None.
        scale_conv_ratio: share, in (0, 1], of such a convolution's output in what passes it; its input is the rest.
        scale_weights: what the loss of each scale counts, as a ratio to the mean of these numbers; all the same if
            None.
    """

    scales: list[int] | None = option(None, or_null(SCALES), or_null(RISING))
    num_scale_convs: int = option(4, integer(0))
    scale_conv_table: str | None = option(None, or_null(one_of(CONV_TABLES)), former="even", later=True)
    scale_conv_ratio: float = option(0.5, interval("(0, 1]"))
    scale_weights: list[float] | None = option(None, or_null(SCALE_WEIGHTS), identity=False, later=True)

    @property
    def scale_shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of the map of each scale; squares, unless a config knows the grid."""
        return [(side, side) for side in self.scales or ()]

    def complete(self, check: Checker) -> None:
        super().complete(check)
        if self.scales is not None:
            check("num_groups", "1 where scales are given, which share one codebook", lambda groups: groups == 1)
            self.scale_conv_table = self.scale_conv_table or "var"
        count = len(self.scales or ())
        expected = f"{count} numbers, one a scale, not all 0, or null" if count else "null where no scales are given"
        check("scale_weights", expected, lambda weights: weights is None or (len(weights) == count and any(weights)))

    @classmethod
    def as_saved(cls, values: dict[str, Any]) -> dict[str, Any]:
        former = {"scale_conv_table": "even"} if values.get("scales") is not None else {}
        return former | super().as_saved(values)


class _Scale(NamedTuple):
    tokens: torch.Tensor  # B r c, D: the residual at this scale
    codes: torch.Tensor  # B r c
    vectors: torch.Tensor  # B r c, D
    quantized: torch.Tensor  # B D h w: the sum of this scale and all coarser ones


class MultiScaleQuantizer(Quantizer):
    """Residual quantizer over maps of rising size, all of one codebook of any method.

    From the residual r = f, each scale takes r averaged down to its map, quantizes it, brings the code vectors up to
    h x w (bicubic), passes them through its convolution phi, and adds the outcome to f_hat; r = f - f_hat.
    phi(x) = (1 - ratio) x + ratio conv(x). At the grid's own side nothing is resampled.

    loss = mean over scales of w_s (alpha |f_hat_s - sg(f)|^2 + beta |sg(f_hat_s) - f|^2), each a mean over all
    elements, and the method's other terms, over the residuals of all scales together, since they share its codes. The
    first term also trains the convolutions: for methods without it, it is there with alpha 1. w_s is
    ``config.scale_weights`` over its mean.

    Features that a method bounds (fsq) are bounded once, before the first scale.

    Args:
        config: with ``scales``.
        book: the codebook, of any method.
    """

    def __init__(self, config: MultiScaleConfig, book: Codebook):
        super().__init__(book.num_codes, book.dim)
        self.book = book
        self.scales, self.ratio = list(config.scales or ()), config.scale_conv_ratio
        self.shapes = config.scale_shapes
        weights = config.scale_weights or [1.0] * len(self.scales)
        shares = [weight / max(weights) for weight in weights]  # exactly 1 where all are equal
        self.scale_weights = [len(shares) * share / sum(shares) for share in shares]
        taken = shared_convs(len(self.scales), config.num_scale_convs, config.scale_conv_table or "var")
        used = sorted(set(taken))  # one that no scale takes would never be trained
        self.conv_of_scale = [used.index(conv) for conv in taken]
        self.convs = nn.ModuleList(nn.Conv2d(self.dim, self.dim, 3, padding=1) for _ in used)

    @property
    def weights(self) -> dict[str, float]:
        return {"codebook_weight": 1.0, **self.book.weights}

    def reset_codebook(self) -> None:
        self.book.reset_codebook()

    def codebook_parameters(self) -> list[nn.Parameter]:
        """Those of the codebook; see :meth:`scale_conv_parameters` for the convolutions."""
        return self.book.codebook_parameters()

    def scale_conv_parameters(self) -> list[nn.Parameter]:
        return list(self.convs.parameters())

    def scale_alignment(self, factor: float) -> None:
        self.book.scale_alignment(factor)

    def begin_step(self, parts: int) -> None:
        self.book.begin_step(parts)

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        return self.book.prepare(features)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes (B, T) int64 of features (B, h, w, D), coarse to fine, each scale row by row.

        Raises:
            DataError: features of another shape, or not finite.
        """
        self._require_maps(features)
        self._require_finite(features)
        with torch.no_grad(), exact_float32(features.device.type):
            steps = self._steps(_channels_first(self.prepare(at_least_float32(features))))
            return self._flat([step.codes for step in steps])

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Quantized features (B, h, w, D) of codes (B, T)."""
        return self.lookup_scales(codes)[-1]

    def lookup_scales(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Quantized features (B, h, w, D) of the first scale of codes (B, T), of the first two, ..., of all S.

        Codes (B, n) of the first scales alone give theirs.
        """
        sizes = [math.prod(shape) for shape in self.shapes]
        given = list(accumulate(sizes)).index(codes.shape[1]) + 1
        quantized, partial = torch.zeros((), device=codes.device), []
        with exact_float32(codes.device.type):
            for index, part in enumerate(codes.split(sizes[:given], dim=1)):
                quantized = quantized + self._spread(self.book.lookup(part.reshape(-1)), index)
                partial.append(quantized.permute(0, 2, 3, 1))
        return partial

    @torch.no_grad()
    def code_tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        convs = [conv for conv in self.convs if isinstance(conv, nn.Conv2d)]
        shape = (self.dim, self.dim, 3, 3)
        weights = torch.stack([conv.weight.cpu() for conv in convs]) if convs else torch.zeros(0, *shape)
        biases = [torch.zeros(self.dim) if conv.bias is None else conv.bias.cpu() for conv in convs]
        bias = torch.stack(biases) if biases else torch.zeros(0, self.dim)
        return {**self.book.code_tensors(device), "conv_weight": weights, "conv_bias": bias}

    @torch.no_grad()
    def residuals(self, features: torch.Tensor, codes: torch.Tensor) -> list[torch.Tensor]:
        """Residual (B r c, D) that each scale quantized, for prepared features (B, h, w, D) and their codes (B, T)."""
        coarser = [torch.zeros_like(features), *self.lookup_scales(codes)[:-1]]
        residuals = [_channels_first(features - maps) for maps in coarser]
        return [self._tokens(residual, shape) for residual, shape in zip(residuals, self.shapes, strict=True)]

    def measurements(self, device: torch.device) -> list[Measurement]:
        return [ScaleAlignment(self, device)]

    def training_state(self) -> dict[str, Any]:
        return self.book.training_state()

    def load_training_state(self, state: dict[str, Any], device: torch.device) -> None:
        self.book.load_training_state(state, device)

    def forward(self, features: torch.Tensor, update_statistics: bool = False) -> QuantizerOutput:
        """Quantize features (B, h, w, D); codes are (B, T). Arguments of :meth:`Quantizer.forward`.

        Utilization and perplexity are over the codes of all scales; ``utilization_scale_s`` is one scale's share.

        Raises:
            DataError: features of another shape, or not finite.
        """
        self._require_maps(features)
        self._require_finite(features, update_statistics)
        with exact_float32(features.device.type):
            prepared = self.prepare(at_least_float32(features))
            target = _channels_first(prepared)
            steps = list(self._steps(target))
            tokens, codes, vectors = (torch.cat(parts) for parts in list(zip(*steps, strict=True))[:3])
            losses = self._losses(target, steps) | {
                name: value
                for name, value in self.book.terms(tokens, vectors, codes, update_statistics).items()
                if name not in ("codebook", "commitment")  # those are taken on f_hat, after the convolutions
            }
            weights = self.weights
            terms = (weights[f"{name}_weight"] * value for name, value in losses.items())
            loss = sum(terms, torch.zeros((), device=features.device))
            flat = prepared.reshape(-1, self.dim)  # N D
            reached = steps[-1].quantized.permute(0, 2, 3, 1).reshape(-1, self.dim)
            quantized = self.book.estimate(flat, reached).reshape(features.shape)
        return QuantizerOutput(
            quantized=quantized.to(features.dtype),
            codes=self._flat([step.codes for step in steps]),
            loss=loss,
            losses={name: value.detach() for name, value in losses.items()},
            statistics=self._batch_statistics((flat - reached).detach(), steps),
        )

    def _steps(self, features: torch.Tensor) -> Iterator[_Scale]:
        quantized = torch.zeros_like(features)
        for index, shape in enumerate(self.shapes):
            # The estimator alone carries the decoder's gradient; none passes from scale to scale.
            tokens = self._tokens(features - quantized.detach(), shape)
            codes = self.book.assign(tokens.detach())
            vectors = self.book.lookup(codes)
            quantized = quantized + self._spread(vectors, index)
            yield _Scale(tokens, codes, vectors, quantized)

    def _tokens(self, residual: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Residual (B, D, h, w) averaged down to a map, (B r c, D)."""
        return average_to(residual, shape).permute(0, 2, 3, 1).reshape(-1, self.dim)

    def _spread(self, vectors: torch.Tensor, index: int) -> torch.Tensor:
        """Contribution (B, D, h, w) of a scale's vectors (B r c, D) to the quantized features."""
        maps = _channels_first(vectors.view(-1, *self.shapes[index], self.dim))
        conv = self.convs[self.conv_of_scale[index]] if self.convs else None
        if not isinstance(conv, nn.Conv2d):  # there is none
            return spread(maps, self.shapes[-1], None, None, self.ratio)
        return spread(maps, self.shapes[-1], conv.weight, conv.bias, self.ratio)

    def _losses(self, target: torch.Tensor, steps: list[_Scale]) -> dict[str, torch.Tensor]:
        reached = [step.quantized for step in steps]
        losses = {"codebook": self._weighted_mean(F.mse_loss(maps, target.detach()) for maps in reached)}
        if "commitment_weight" in self.book.weights:
            losses["commitment"] = self._weighted_mean(F.mse_loss(target, maps.detach()) for maps in reached)
        return losses

    def _weighted_mean(self, losses: Iterable[torch.Tensor]) -> torch.Tensor:
        """Mean of one loss a scale, by the weights of the scales."""
        weighted = [weight * loss for weight, loss in zip(self.scale_weights, losses, strict=True)]
        return torch.stack(weighted).mean()

    @torch.no_grad()
    def _batch_statistics(self, error: torch.Tensor, steps: list[_Scale]) -> dict[str, torch.Tensor]:
        counts = torch.stack([code_counts(step.codes, self.num_codes) for step in steps])  # S K
        joined = counts.sum(0)
        shares = (counts > 0).float().mean(1)
        return {
            "quantization_error": error.square().sum(1).mean(),
            "utilization": (joined > 0).float().mean(),
            "perplexity": code_perplexity(joined),
            **{f"utilization_scale_{side}": share for side, share in zip(self.scales, shares, strict=True)},
        }

    def _flat(self, codes: list[torch.Tensor]) -> torch.Tensor:
        maps = zip(codes, self.shapes, strict=True)
        return torch.cat([part.view(-1, math.prod(shape)) for part, shape in maps], dim=1)

    def _require_maps(self, features: torch.Tensor) -> None:
        self._require_width(features)
        rows, columns = self.shapes[-1]
        if features.ndim != 4 or tuple(features.shape[1:3]) != (rows, columns):
            raise DataError(
                f"features must be (B, {rows}, {columns}, {self.dim}) for these scales, got {tuple(features.shape)}; "
                "a multi-scale quantizer needs the whole map"
            )


def _channels_first(maps: torch.Tensor) -> torch.Tensor:
    # Contiguous, so that pooling and convolutions always take the same routine, which fixes their rounding.
    return maps.permute(0, 3, 1, 2).contiguous()


class ScaleAlignment:
    """How far the codes are from what each scale quantizes: the Gaussian 2-Wasserstein distance of arXiv 2506.15078.

    Streaming, over the moments of all residuals of a scale: exact over any number of batches and processes. In units of
    the largest standard deviation of the residuals of all scales together, so that scales compare.

    Args:
        quantizer: whose scales and codes they are.
        device: where the residuals are.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, device: torch.device | str = "cpu"):
        self.quantizer = quantizer
        shape = len(quantizer.scales), quantizer.dim + 2, quantizer.dim
        self._sums = torch.zeros(*shape, dtype=torch.float64, device=device)

    def update(self, features: torch.Tensor, codes: torch.Tensor) -> None:
        """Add what each scale quantized of prepared features (B, h, w, D) that became codes (B, T)."""
        for sums, rows in zip(self._sums, self.quantizer.residuals(features, codes), strict=True):
            sums += packed_sums(rows)

    def reduce(self) -> None:
        """Sum over all processes."""
        sum_over_processes(self._sums)

    @torch.no_grad()
    def compute(self) -> dict[str, float | list[float]]:
        """alignment, of all residuals together, and alignment_per_scale; to all codes, used or not."""
        book = self.quantizer.book
        codebook = book.lookup(torch.arange(book.num_codes, device=self._sums.device))
        moments = [packed_moments(sums) for sums in (self._sums.sum(0), *self._sums)]
        unit = feature_scale(moments[0][1])
        joined, *each = (float(gaussian_wasserstein(*pair, codebook, normalize=False) / unit) for pair in moments)
        return {"alignment": joined, "alignment_per_scale": each}
