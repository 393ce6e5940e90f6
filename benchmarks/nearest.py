"""Nearest-code search against the textbook form, paired in one run: `make bench`.

Prints medians and their ratio; the machine and the versions are printed with them.
"""

from __future__ import annotations

import platform
import statistics
import time

import torch

from wvq.tokenizer.nearest import nearest_codes


def textbook(features: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """argmin over the whole N x K matrix of squared distances."""
    distances = (
        features.square().sum(1, keepdim=True)
        + codebook.square().sum(1)
        - 2 * torch.einsum("nd,kd->nk", features, codebook)
    )
    return distances.argmin(1)


def measure(features: torch.Tensor, codebook: torch.Tensor, repeats: int = 7) -> tuple[float, float]:
    """Median seconds of the tiled search and of the textbook form, run in turn."""
    times: dict = {nearest_codes: [], textbook: []}
    for repeat in range(repeats + 1):
        for search, seconds in times.items():
            start = time.perf_counter()
            search(features, codebook)
            if repeat:  # the first pair warms up
                seconds.append(time.perf_counter() - start)
    return statistics.median(times[nearest_codes]), statistics.median(times[textbook])


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'N':>8}{'K':>8}{'D':>4}{'tiled ms':>12}{'textbook ms':>14}{'ratio':>8}")
    generator = torch.Generator().manual_seed(0)
    for count, num_codes, dim in ((2_048, 1_024, 8), (8_192, 16_384, 8), (8_192, 16_384, 32)):
        features = torch.randn(count, dim, generator=generator)
        codebook = torch.randn(num_codes, dim, generator=generator)
        tiled, whole = measure(features, codebook)
        print(f"{count:>8}{num_codes:>8}{dim:>4}{tiled * 1e3:>12.1f}{whole * 1e3:>14.1f}{whole / tiled:>8.2f}")


if __name__ == "__main__":
    main()
