"""The criterion triple E, U, C over one histogram of a whole evaluation set, and the picture metrics PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wvq.distributed import gather_objects

# ITU-R BT.601: Y = 16 + 65.481 R + 128.553 G + 24.966 B for R, G, B in [0, 1].
_LUMA = (65.481, 128.553, 24.966)


def code_perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp(entropy) of a code histogram (K,): between 1 and K; 1 for an empty one."""
    shares = counts / counts.sum().clamp_min(1)
    return torch.special.entr(shares).sum().exp()


class CodeStatistics:
    """Streaming quantization error E, codebook utilization U and perplexity C (arXiv 2506.15078, section 2).

    E: mean over features of the squared distance to their code, summed over the D dims. U: share of the K codes chosen
    at least once. C: exp(entropy of the code histogram), in [1, K]. For a product of G codebooks U and C are means over
    the codebooks, and the joint figures take the G codes of a feature as one of K^G. Exact over any number of batches
    and processes.

    Args:
        num_codes: size K of a codebook.
        num_groups: number G of codebooks.
        device: of the codes.
    """

    def __init__(self, num_codes: int, num_groups: int = 1, device: torch.device | str = "cpu"):
        self.num_codes, self.num_groups = num_codes, num_groups
        self._counts = torch.zeros(num_groups * num_codes, dtype=torch.int64, device=device)
        self._offsets = torch.arange(num_groups, device=device) * num_codes
        self._joint = _JointCounts(num_groups) if num_groups > 1 else None
        self.squared_error = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def counts(self) -> torch.Tensor:
        """How often each code was chosen: (K,), or (G, K) for several codebooks."""
        return self._counts if self.num_groups == 1 else self._counts.view(self.num_groups, -1)

    def update(self, codes: torch.Tensor, quantization_error: torch.Tensor) -> None:
        """Add codes (...), or (..., G) for several codebooks, and their mean quantization error (0-d)."""
        flat = codes.detach().reshape(-1, self.num_groups)
        self._counts.scatter_add_(0, (flat + self._offsets).reshape(-1), torch.ones_like(flat).reshape(-1))
        if self._joint:
            self._joint.update(flat)
        self.squared_error += quantization_error.detach().double() * len(flat)

    def reduce(self, accelerator) -> None:
        """Sum over all processes."""
        self._counts = accelerator.reduce(self._counts, "sum")
        self.squared_error = accelerator.reduce(self.squared_error, "sum")
        if self._joint:
            self._joint.reduce()

    def compute(self) -> dict[str, float | int | list[float]]:
        """quantization_error, utilization, perplexity and num_tokens (features).

        For several codebooks also utilization_per_codebook, perplexity_per_codebook, joint_codes (how many of the K^G
        were chosen), joint_utilization (their share) and joint_perplexity.
        """
        counts = self._counts.view(self.num_groups, -1)
        tokens = int(counts[0].sum())
        used = (counts > 0).double().mean(1).tolist()
        perplexity = [float(code_perplexity(group.double())) for group in counts]
        figures = {
            "quantization_error": float(self.squared_error) / max(tokens, 1),
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
        return figures


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


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """Y of the studio-range YCbCr (BT.601), in [16, 235]; pixels (B, 3, H, W) in [0, 255] -> (B, 1, H, W)."""
    weights = pixels.new_tensor(_LUMA).view(1, 3, 1, 1)
    return 16 + (pixels * weights).sum(1, keepdim=True) / 255


def psnr(pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture in dB, peak 255; (B, C, H, W) in [0, 255] -> (B,), at most 100 dB."""
    error = (pictures.double() - references.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp_min(255**2 * 1e-10))


def ssim(pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each picture, mean over channels and the positions where the whole window fits.

    Gaussian window of 11 x 11 with sigma 1.5, K1 = .01, K2 = .03, range 255, biased moments: Wang et al. 2004.

    Args:
        pictures, references: (B, C, H, W) in [0, 255], H and W at least 11.

    Returns:
        (B,) in [-1, 1].
    """
    if min(pictures.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, got {tuple(pictures.shape[-2:])}")
    x, y = pictures.double(), references.double()
    channels = x.shape[1]
    offsets = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()
    kernel = torch.outer(window, window).expand(channels, 1, 11, 11)

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, kernel, groups=channels)

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    value = value / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return value.flatten(1).mean(1)
