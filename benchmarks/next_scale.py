"""Time of a picture by next scale, compared with one code after the other at equal width and depth.

    python -m benchmarks.next_scale [--batches 1 4 16] [--rounds 3 2 1] [--out docs/results/next_scale_speed.json]
    python -m benchmarks.next_scale --threads 2 --out docs/results/next_scale_speed_2_threads.json

Both draw a picture of 256 x 256 pixels by :func:`wvq.generator.sampling.sample_codes` with a generator of size d16
(16 layers of 1,024, K = 4,096, 1,000 classes) in float32: next scale 680 codes of ten scales in ten passes, the plain
sampler the 256 codes of a 16 x 16 grid in as many; each with guidance 2, which doubles the rows of all passes, and
without. In each round either runs once, in turn; times are medians over rounds, ratios medians of the rounds' own. On
one thread they are processor seconds, which other programs on the machine change little; on several, seconds of the
clock.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wvq.files.atomic import write_json
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.generator.next_scale.modeling import NextScaleTransformer
from wvq.generator.sampling import sample_codes
from wvq.hardware import processor_name

CLASSES = 1_000
SIZES: dict[str, Any] = {"size": "d16", "num_codes": 4_096, "num_classes": CLASSES}


def build_generators() -> tuple[NextScaleTransformer, ImageCodeTransformer]:
    """Both generators, with random weights and a random quantizer."""
    torch.manual_seed(0)
    by_scale = NextScaleTransformer(NextScaleTransformerConfig(**SIZES)).eval()
    tensors = {name: getattr(by_scale, name) for name in ("codebook", "conv_weight", "conv_bias")}
    by_scale.take_quantizer({name: torch.randn_like(tensor) for name, tensor in tensors.items()})
    return by_scale, ImageCodeTransformer(ImageCodeTransformerConfig(**SIZES, grid=[16, 16], head="normal")).eval()


def draw(model: CodeGenerator, batch: int, guidance: float) -> Callable[[], float]:
    """Seconds of drawing a batch."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    condition, settings = Condition(torch.arange(batch)), SamplingSettings(guidance_scale=guidance)

    def run() -> float:
        start = clock()
        sample_codes(model, condition, list(range(batch)), settings)
        return clock() - start

    return run


def compare(
    by_scale: NextScaleTransformer, plain: ImageCodeTransformer, batch: int, guidance: float, rounds: int
) -> dict[str, Any]:
    """Seconds a picture of both, and how many times as long the plain sampler takes."""
    cases = {"next_scale": draw(by_scale, batch, guidance), "plain": draw(plain, batch, guidance)}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in list(cases) if number % 2 else list(cases)[::-1]:
            times[name].append(cases[name]())
    ratios = [plain / own for plain, own in zip(times["plain"], times["next_scale"], strict=True)]
    return {
        "batch": batch,
        "guidance": guidance,
        "rounds": rounds,
        "next_scale_passes": len(by_scale.config.scales),
        "plain_passes": plain.config.sequence_length,
        **{f"{name}_seconds": round(statistics.median(values) / batch, 3) for name, values in times.items()},
        "plain_to_next_scale": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 2, 1], help="of each batch size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    by_scale, plain = build_generators()
    machine = {"machine": processor_name(), "torch": torch.__version__, "python": platform.python_version()}
    result: dict[str, Any] = {**machine, "threads": arguments.threads, "rows": []}
    for batch, rounds in zip(arguments.batches, arguments.rounds, strict=True):
        for guidance in arguments.guidance:
            result["rows"].append(compare(by_scale, plain, batch, guidance, rounds))
            print(result["rows"][-1], flush=True)
            if arguments.out:  # after each, so that a long run can be cut short
                write_json(arguments.out, result)


if __name__ == "__main__":
    main()
