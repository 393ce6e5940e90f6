"""The criterion triple E, U, C over one histogram of a whole evaluation set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from wvq.distributed import gather_objects, sum_over_processes


def code_counts(codes: torch.Tensor, num_codes: int) -> torch.Tensor:
    """How often each of the K codes occurs, (K,) float32; codes (N,)."""
    # scatter_add and not bincount, which waits for the GPU to learn its output's size.
    counts = torch.zeros(num_codes, device=codes.device)
    return counts.scatter_add_(0, codes, torch.ones_like(codes, dtype=counts.dtype))


def code_perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp(entropy) of a code histogram (K,): between 1 and K; 1 for an empty one."""
    shares = counts / counts.sum().clamp_min(1)
    return torch.special.entr(shares).sum().exp()


class CodeStatistics:
    """Streaming quantization error E, codebook utilization U and perplexity C (arXiv 2506.15078, section 2).

    E: mean over features of the squared distance to their code, summed over the D dims. U: share of the K codes chosen
    at least once. C: exp(entropy of the code histogram), in [1, K]. For a product of G codebooks U and C are means over
    the codebooks, and the joint figures take the G codes of a feature as one of K^G. For several scales of one codebook
    E is over the features of the grid, U and C over the codes of all scales together, and each scale has its own U and
    C beside. Exact over any number of batches and processes.

    Args:
        num_codes: size K of a codebook.
        num_groups: number G of codebooks.
        device: where the codes are.
        scales: rows and columns of the maps that share a codebook, the last one the grid; none for one map.
    """

    def __init__(
        self,
        num_codes: int,
        num_groups: int = 1,
        device: torch.device | str = "cpu",
        scales: Sequence[tuple[int, int]] = (),
    ):
        self.num_codes, self.num_groups, self.scales = num_codes, num_groups, list(scales)
        histograms = max(num_groups, len(self.scales))
        self._counts = torch.zeros(histograms * num_codes, dtype=torch.int64, device=device)
        # Where in the counts the histogram starts that a code belongs to: of its codebook, or of its scale.
        owner = torch.arange(num_groups, device=device)
        if self.scales:
            tokens = torch.tensor([math.prod(shape) for shape in self.scales], device=device)
            owner = torch.arange(len(self.scales), device=device).repeat_interleave(tokens)
        self._offsets = owner * num_codes
        self._joint = _JointCounts(num_groups) if num_groups > 1 else None
        self.squared_error = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def counts(self) -> torch.Tensor:
        """How often each code was chosen: (K,), over all scales; (G, K) for several codebooks."""
        counts = self._counts.view(-1, self.num_codes)
        return counts if self.num_groups > 1 else counts.sum(0)

    def update(self, codes: torch.Tensor, quantization_error: torch.Tensor) -> None:
        """Add codes and the mean quantization error (0-d) of their features.

        Args:
            codes: (...); (..., G) for several codebooks, (B, T) for several scales.
            quantization_error: mean over features.
        """
        flat = codes.detach().reshape(-1, len(self._offsets))
        self._counts.scatter_add_(0, (flat + self._offsets).reshape(-1), torch.ones_like(flat).reshape(-1))
        if self._joint:
            self._joint.update(flat)
        features = len(flat) * (math.prod(self.scales[-1]) if self.scales else 1)
        self.squared_error += quantization_error.detach().double() * features

    def reduce(self) -> None:
        """Sum over all processes."""
        sum_over_processes(self._counts)
        sum_over_processes(self.squared_error)
        if self._joint:
            self._joint.reduce()

    def compute(self) -> dict[str, float | list[float]]:
        """quantization_error, utilization, perplexity and num_tokens (features, or codes over all scales).

        For several codebooks also utilization_per_codebook, perplexity_per_codebook, joint_codes (how many of the K^G
        were chosen), joint_utilization (their share) and joint_perplexity. For several scales also
        utilization_per_scale, perplexity_per_scale and num_tokens_per_scale, which bounds both.
        """
        used, perplexity, tokens_of_each = _usage(self.counts.view(self.num_groups, -1))
        tokens = tokens_of_each[0]
        features = tokens
        if self.scales:
            by_scale = _usage(self._counts.view(len(self.scales), -1))
            features = by_scale[2][-1]  # the last scale has one code for each feature
        figures: dict[str, float | list[float]] = {
            "quantization_error": float(self.squared_error) / max(features, 1),
            "utilization": sum(used) / len(used),
            "perplexity": sum(perplexity) / len(perplexity),
            "num_tokens": tokens,
        }
        if self._joint:
            joint = self._joint.counts()
            figures |= {
                "utilization_per_codebook": used,
                "perplexity_per_codebook": perplexity,
                "joint_codes": len(joint),
                "joint_utilization": len(joint) / self.num_codes**self.num_groups,
                "joint_perplexity": float(code_perplexity(joint.double())),
            }
        if self.scales:
            figures |= dict(
                zip(("utilization_per_scale", "perplexity_per_scale", "num_tokens_per_scale"), by_scale, strict=True)
            )
        return figures


def _usage(counts: torch.Tensor) -> tuple[list[float], list[float], list[float]]:
    # U, C and tokens of each histogram; counts (number of histograms, K).
    used = (counts > 0).double().mean(1).tolist()
    return used, [float(code_perplexity(one.double())) for one in counts], counts.sum(1).tolist()


class _JointCounts:
    # How often each combination of G codes occurred. Only those that occurred are kept: K^G may be astronomical.
    _WAITING_ROWS = 2**18

    def __init__(self, num_groups: int):
        self._rows = torch.empty(0, num_groups, dtype=torch.int64)
        self._numbers = torch.empty(0, dtype=torch.int64)
        self._waiting: list[torch.Tensor] = []

    def update(self, rows: torch.Tensor) -> None:
        self._waiting.append(rows.cpu())
        if sum(map(len, self._waiting)) >= self._WAITING_ROWS:
            self._merge([self._rows, *self._waiting], self._numbers)

    def reduce(self) -> None:
        self._merge([self._rows, *self._waiting], self._numbers)
        shares = gather_objects((self._rows, self._numbers))
        self._merge([rows for rows, _ in shares], torch.cat([numbers for _, numbers in shares]))

    def counts(self) -> torch.Tensor:
        self._merge([self._rows, *self._waiting], self._numbers)
        return self._numbers

    def _merge(self, rows: list[torch.Tensor], numbers: torch.Tensor) -> None:
        # Rows beyond ``numbers`` occurred once each.
        joined = torch.cat(rows)
        numbers = F.pad(numbers, (0, len(joined) - len(numbers)), value=1)
        self._rows, place = joined.unique(dim=0, return_inverse=True)
        self._numbers = torch.zeros(len(self._rows), dtype=torch.int64).scatter_add_(0, place, numbers)
        self._waiting = []
