"""Training step of the quantizers (forward and backward): time against two alternatives, and peak memory.

    python -m benchmarks.quantizer [--rounds 9] [--out docs/results/quantizer_speed.json]

Times are medians over rounds; in each round every method runs once, so that a change of the machine's speed affects
all of them. Peak memory is that of one step in its own process, above what the process held before it.

textbook: the N x K distance matrix by einsum, argmin, and the Gaussian distance with its statistics recomputed in every
step over a queue of 65,536 features. library: VectorQuantize of vector-quantize-pytorch as it comes (moving average).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from wvq.files.atomic import write_json
from wvq.hardware import processor_name
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.nearest import nearest_codes
from wvq.tokenizer.quantizers.registry import build_quantizer

N, K, D = 8_192, 16_384, 8
OURS = ("vanilla", "ema", "online", "linear", "wasserstein", "sliced")
QUEUE = 65_536


def build_own(name: str, num_codes: int):
    """A step of a quantizer of this package."""
    quantizer = build_quantizer(WassersteinVQConfig(quantizer=name, num_codes=num_codes, code_dim=D))
    quantizer.reset_codebook()
    torch.nn.init.normal_(quantizer.codebook)

    def step(features: torch.Tensor) -> None:
        features.grad = None
        quantizer.zero_grad()
        output = quantizer(features, update_statistics=True)
        (output.loss + output.quantized.square().mean()).backward()

    return step


def textbook(num_codes: int):
    """A step with the distance matrix, written by hand."""
    codebook = torch.randn(num_codes, D).requires_grad_()
    queue = torch.randn(QUEUE, D)

    def root(matrix: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.clamp_min(0).sqrt() + 1e-8) @ vectors.T

    def step(features: torch.Tensor) -> None:
        nonlocal queue
        features.grad = codebook.grad = None
        distances = features.square().sum(1, keepdim=True) + codebook.square().sum(1)
        distances = distances - 2 * torch.einsum("nd,kd->nk", features, codebook)
        vectors = F.embedding(distances.argmin(1), codebook)
        queue = torch.cat([queue[len(features) :], features.detach()])
        mean, covariance = queue.mean(0), torch.cov(queue.T)
        code_covariance = torch.cov(codebook.T)
        half = root(covariance)
        cross = torch.linalg.eigvalsh(half @ code_covariance @ half).clamp_min(1e-12).sqrt().sum()
        bures = (covariance.trace() + code_covariance.trace() - 2 * cross).relu()
        distance = ((mean - codebook.mean(0)).square().sum() + bures + 1e-10).sqrt()
        loss = F.mse_loss(vectors, features.detach()) + 0.1 * F.mse_loss(features, vectors.detach()) + 0.5 * distance
        quantized = features + (vectors - features).detach()
        (loss + quantized.square().mean()).backward()

    return step


def library(num_codes: int):
    """A step of vector-quantize-pytorch's VectorQuantize."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=D, codebook_size=num_codes).train()

    def step(features: torch.Tensor) -> None:
        features.grad = None
        quantized, _, loss = quantizer(features[None])
        (loss.sum() + quantized.square().mean()).backward()

    return step


def build(method: str, num_codes: int):
    """A step of a method, which takes features (N, D)."""
    torch.manual_seed(0)
    if method in OURS:
        return build_own(method, num_codes)
    return {"textbook": textbook, "library": library}[method](num_codes)


def features(count: int = N) -> torch.Tensor:
    """Normal features (count, D) with gradients."""
    return torch.randn(count, D, generator=torch.Generator().manual_seed(0)).requires_grad_()


def timed(function, *arguments) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def times(rounds: int) -> dict[str, float]:
    """Median seconds of a step of each method, and of the search alone in both forms."""
    steps = {method: build(method, K) for method in (*OURS, "textbook", "library")}
    codebook, plain = torch.randn(K, D), features().detach()
    steps |= {
        "search": lambda batch: nearest_codes(plain, codebook),
        "search, tiled": lambda batch: nearest_codes(plain, codebook, tile_bytes=2**20),
        "search, textbook": lambda batch: torch.cdist(plain, codebook).argmin(1),
    }
    batches = {method: features() for method in steps}
    measured = {method: [] for method in steps}
    for _ in range(rounds + 1):  # the first round warms up
        for method, step in steps.items():
            measured[method].append(timed(step, batches[method]))
    return {method: statistics.median(values[1:]) for method, values in measured.items()}


def peak_memory(method: str, num_codes: int) -> float:
    """Extra peak memory of one step in MiB, in its own process."""
    command = [sys.executable, "-m", "benchmarks.quantizer", "--memory", method, "--num_codes", str(num_codes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(method: str, num_codes: int) -> float:
    """Extra peak memory of one step in MiB, in this process."""
    build(method, 64)(features(64))  # libraries, threads and compiled code are loaded
    step, batch = build(method, num_codes), features()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak to what the process holds now
    before = memory_line("VmRSS")
    step(batch)
    return (memory_line("VmHWM") - before) / 1024


def memory_line(name: str) -> int:
    """KiB of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--num_codes", type=int, default=K, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(measure_memory(arguments.memory, arguments.num_codes))
        return
    machine = f"{processor_name()}, {torch.get_num_threads()} threads"
    result = {"machine": machine, "torch": torch.__version__, "N": N, "K": K, "D": D, "rounds": arguments.rounds}
    print(f"{machine}, torch {torch.__version__}; N {N:,}, K {K:,}, D {D}; medians of {arguments.rounds} rounds\n")
    medians = times(arguments.rounds)
    memory = {method: peak_memory(method, 100_000) for method in OURS}
    memory_at_k = {method: peak_memory(method, K) for method in (*OURS, "textbook", "library")}
    print("| method | ms a step | textbook / it | library / it | extra MiB, K 16,384 | extra MiB, K 100,000 |")
    print("|---|---|---|---|---|---|")
    for method, seconds in medians.items():
        ratios = [f"{medians[other] / seconds:.1f}" for other in ("textbook", "library")]
        if method.startswith("search"):
            ratios = [f"{medians['search, textbook'] / seconds:.1f}", ""]
        extra = [f"{values[method]:.0f}" if method in values else "" for values in (memory_at_k, memory)]
        print(f"| {method} | {seconds * 1e3:.1f} | {' | '.join(ratios + extra)} |")
    shares = {name: 1 - medians["vanilla"] / medians[name] for name in ("wasserstein", "sliced")}
    print(f"\nshare of the step that the alignment takes: {json.dumps({k: round(v, 3) for k, v in shares.items()})}")
    if arguments.out:
        result |= {"seconds": medians, "extra_mib": memory_at_k, "extra_mib_100000": memory, "alignment_share": shares}
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
