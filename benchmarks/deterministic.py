"""What drawing the same pictures to the bit for any batch costs.

    python -m benchmarks.deterministic [--batches 1 8 32] [--rounds 5] [--out docs/results/deterministic_speed.json]

A call of a pipeline (6 layers of 384, K = 16,384, 8 x 8 codes, guidance 2, pictures decoded) with and without
``deterministic``, in turns; medians of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from benchmarks.memory import TOKENIZER, build
from wvq.files.atomic import write_json
from wvq.hardware import hardware
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel


def seconds(pipe: ImageGenerationPipeline, batch: int, deterministic: bool) -> float:
    """Seconds of one call of the pipeline."""
    start = time.perf_counter()
    pipe(num_images=batch, batch_size=batch, seed=0, guidance_scale=2.0, deterministic=deterministic)
    return time.perf_counter() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    generator = build({})
    size = {"image_size": 64, "num_codes": generator.config.num_codes}
    pipe = ImageGenerationPipeline(WassersteinVQModel(WassersteinVQConfig(**TOKENIZER | size)), generator)
    rows = []
    for batch in arguments.batches:
        times: dict[bool, list[float]] = {False: [], True: []}
        for number in range(arguments.rounds + 1):
            for on in (True, False) if number % 2 else (False, True):
                times[on].append(seconds(pipe, batch, on))
        plain, fixed = times[False][1:], times[True][1:]  # the first round warms
        rows.append(
            {
                "batch": batch,
                "plain_seconds": round(statistics.median(plain), 3),
                "deterministic_seconds": round(statistics.median(fixed), 3),
                "ratio": round(statistics.median(a / b for a, b in zip(fixed, plain, strict=True)), 2),
            }
        )
        print(rows[-1], flush=True)
        if arguments.out:
            write_json(arguments.out, {"hardware": hardware(), "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
