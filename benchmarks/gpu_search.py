"""The nearest-code search and the sliced alignment on a GPU; parts of benchmarks/gpu.py.

search: time, memory and codes of the search in the form that the device has ("fused" on a GPU), in tiles of products,
by ``cdist`` and argmin over as many rows as fit 2^30 distances, and of vector-quantize-pytorch's VectorQuantize in
evaluation, which builds all distances and so is run for one size of codebook. Codes are compared with the nearest in
float64 and with those that the CPU finds; where they are others, "largest gap" is how much further they are, as a share
of the smallest squared distance. Then the fused search with tiles of other sizes.

alignment_share: a step of the sliced quantizer alone, and one of a tokenizer of 256 pixels, with and without alignment.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch

from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers import fused
from wvq.tokenizer.quantizers.interface import Quantizer
from wvq.tokenizer.quantizers.nearest import cache_bytes, exact_float32, nearest_codes
from wvq.tokenizer.quantizers.registry import build_quantizer

# N, K, D; the last one takes as long as all others.
SIZES = [(n, k, d) for k in (16_384, 262_144) for n in (65_536, 256) for d in (8, 256)]
SIZES.sort(key=lambda size: math.prod(size) > 2**41)
TINY_SIZES = [(300, 64, 8), (40, 128, 32)]
LIBRARY_CODES = 16_384
ROUNDS, WARM_UP = 10, 3
FEW_DIMS_TILES = [
    {"ROWS": 64, "CODES": 32, "UNROLL": 2, "num_warps": 8},
    {"ROWS": 32, "CODES": 32, "UNROLL": 4, "num_warps": 4},
    {"ROWS": 64, "CODES": 64, "UNROLL": 2, "num_warps": 8},
    {"ROWS": 128, "CODES": 32, "UNROLL": 2, "num_warps": 8},
]
MANY_DIMS_TILES = [
    {"ROWS": 128, "CODES": 256, "DIMS": 32, "num_warps": 8, "num_stages": 3},
    {"ROWS": 128, "CODES": 256, "DIMS": 32, "num_warps": 8, "num_stages": 4},
    {"ROWS": 128, "CODES": 128, "DIMS": 64, "num_warps": 8, "num_stages": 3},
    {"ROWS": 128, "CODES": 128, "DIMS": 32, "num_warps": 4, "num_stages": 2},
]


Step = tuple[Callable[[], None], Quantizer]


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Median time of a call, between two events on the GPU; of two calls on the CPU, which shows that they run."""
    on_gpu = device.startswith("cuda")
    for _ in range(WARM_UP if on_gpu else 1):
        run()
    times = []
    for _ in range(ROUNDS if on_gpu else 2):
        if on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def extra_mib(run: Callable[[], object], device: str) -> float | None:
    """Peak memory of a call beyond what is held before it, in MiB; None on the CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def draw(num_features: int, num_codes: int, dim: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal features and codes, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, dim, generator=generator).to(device) for count in (num_features, num_codes))


def by_distances(features: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """What one would write: all distances, in float32, of as many rows as fit."""
    with exact_float32(features.device.type):
        parts = features.split(max(1, 2**30 // len(codebook)))
        return torch.cat([torch.cdist(part, codebook).argmin(1) for part in parts])


def by_library(codebook: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """vector-quantize-pytorch's search with these codes; None where it is not installed."""
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        return None
    quantizer = VectorQuantize(dim=codebook.shape[1], codebook_size=len(codebook)).to(codebook.device).eval()
    quantizer.codebook = codebook

    @torch.no_grad()
    def run(features: torch.Tensor) -> torch.Tensor:
        with exact_float32(features.device.type):
            return quantizer(features[None])[1][0]

    return run


def compare(codes: torch.Tensor, features: torch.Tensor, codebook: torch.Tensor) -> dict[str, float]:
    """Codes against the nearest ones in float64 and, of fewer rows, against those of the CPU."""
    rows = min(len(features), 2_048)
    wide, wide_codes = features[:rows].double(), codebook.double()
    squared = wide_codes.square().sum(1)
    best = torch.cat([(squared - 2 * part @ wide_codes.T).argmin(1) for part in wide.split(512)])
    distances = [(wide - wide_codes[chosen]).square().sum(1) for chosen in (codes[:rows], best)]
    on_cpu = min(rows, max(32, 2**33 // codebook.numel()))
    same = codes[:on_cpu].cpu() == nearest_codes(features[:on_cpu].cpu(), codebook.cpu())
    return {
        "same as float64": (codes[:rows] == best).float().mean().item(),
        "largest gap": ((distances[0] - distances[1]) / distances[1]).max().item(),
        "same as CPU": same.float().mean().item(),
    }


def runs_fused(features: torch.Tensor, codebook: torch.Tensor) -> bool:
    """Whether the fused kernels search these, and no other form."""
    return fused.usable(features, codebook) and fused.search(features[:1], codebook) is not None


def search(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row for each size of features and codebook, then one for each size of tiles."""
    for size in TINY_SIZES if tiny else SIZES:
        yield search_row(device, *size)
    for dim, name, others in ((8, "FEW_DIMS_TILE", FEW_DIMS_TILES), (256, "MANY_DIMS_TILE", MANY_DIMS_TILES)):
        features, codebook = draw(*((64, 32) if tiny else (65_536, 16_384)), dim, device)
        if runs_fused(features, codebook):
            for tile in (getattr(fused, name), *others):
                yield tile_row(features, codebook, name, tile)


def search_row(device: str, num_features: int, num_codes: int, dim: int) -> dict[str, Any]:
    """Times, memory and codes of one size."""
    features, codebook = draw(num_features, num_codes, dim, device)
    codes = nearest_codes(features, codebook)
    row: dict[str, Any] = {"N": num_features, "K": num_codes, "D": dim, "fused": runs_fused(features, codebook)}
    row["ms"] = milliseconds(lambda: nearest_codes(features, codebook), device)
    row["tiled ms"] = milliseconds(lambda: nearest_codes(features, codebook, cache_bytes(features.device)), device)
    row["cdist ms"] = milliseconds(lambda: by_distances(features, codebook), device)
    row["tiled / ms"], row["cdist / ms"] = row["tiled ms"] / row["ms"], row["cdist ms"] / row["ms"]
    library = by_library(codebook) if num_codes <= LIBRARY_CODES else None
    row["library ms"] = milliseconds(lambda: library(features), device) if library else None
    row["extra MiB"] = extra_mib(lambda: nearest_codes(features, codebook), device)
    return row | compare(codes, features, codebook)


def tile_row(features: torch.Tensor, codebook: torch.Tensor, name: str, tile: dict[str, int]) -> dict[str, Any]:
    """Time of the fused search with tiles of a size; None where the device does not run them."""
    with patch.object(fused, name, tile):
        runs = runs_fused(features, codebook)
        fused.failed.clear()  # that these tiles do not run says nothing of the next
        time_taken = milliseconds(lambda: fused.search(features, codebook), str(features.device)) if runs else None
        return {"tile": str(tile), "D": codebook.shape[1], "ms": time_taken}


def alignment_share(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row for each step: the sliced quantizer's at three numbers of features, and a tokenizer's."""
    num_codes = 256 if tiny else 262_144
    for count in (64,) if tiny else (8_192, 16_384, 65_536):
        config = WassersteinVQConfig(quantizer="sliced", num_codes=num_codes, code_dim=8)
        yield {"step": "quantizer", "N": count, **share(quantizer_step(config, count, device), device)}
    size, channels, multipliers, batch = (32, 16, [1, 2], 2) if tiny else (256, 128, [1, 1, 2, 2, 4], 32)
    config = WassersteinVQConfig(
        image_size=size, base_channels=channels, channel_multipliers=multipliers, num_codes=num_codes, code_dim=8
    )
    count = batch * math.prod(config.grid)
    yield {"step": "tokenizer", "N": count, **share(tokenizer_step(config, batch, device), device)}


def quantizer_step(config: WassersteinVQConfig, count: int, device: str) -> Step:
    """Forward and backward of a quantizer, and the module whose alignment can be weighted."""
    torch.manual_seed(0)
    quantizer = build_quantizer(config).to(device)
    quantizer.reset_codebook()
    features = torch.randn(count, config.code_dim, device=device).requires_grad_()

    def run() -> None:
        features.grad = None
        quantizer.zero_grad()
        output = quantizer(features, update_statistics=True)
        (output.loss + output.quantized.square().mean()).backward()

    return run, quantizer


def tokenizer_step(config: WassersteinVQConfig, batch: int, device: str) -> Step:
    """A whole step of a tokenizer without adversary, in bfloat16 and channels last."""
    torch.manual_seed(0)
    model = WassersteinVQModel(config).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.startswith("cuda"))
    pictures = torch.rand(batch, 3, config.image_size, config.image_size, device=device) * 2 - 1
    pictures = pictures.to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            output = model(pictures, update_statistics=True)
            loss = (output.reconstruction - pictures).square().mean() + output.quantizer_loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run, model.quantizer


def share(step: Step, device: str) -> dict[str, Any]:
    """Times of a step with and without the alignment, and the share of the former that the alignment takes."""
    run, quantizer = step
    row: dict[str, Any] = {}
    for with_it, factor in (("", 1.0), (" without", 0.0)):
        quantizer.scale_alignment(factor)
        row[f"ms{with_it}"] = milliseconds(run, device)
        row[f"kernels{with_it}"] = number_of_kernels(run, device)
    return {**row, "share": 1 - row["ms without"] / row["ms"]}


def number_of_kernels(run: Callable[[], None], device: str) -> int | None:
    """Kernels that a call starts; None on the CPU."""
    if not device.startswith("cuda"):
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
