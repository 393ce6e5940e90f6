"""Time of a picture against the passes that it is drawn in (:mod:`wvq.generator.next_code.any_order`).

    python -m benchmarks.passes [--side 16] [--batches 1 8] [--passes 8 16 32 64] [--rounds 3] [--out FILE]
    OMP_NUM_THREADS=1 python -m benchmarks.passes --side 8 --passes 4 8 16 32 --out docs/results/passes.json

A generator of size B (12 layers of 768, K = 16,384, side x side codes, one class token) under guidance 2. ours: one
code a pass, row by row; passes_8: in 8 passes, and so on. Times are milliseconds a code of all pictures of a batch. In
each round every case runs once, in turn; times are medians over rounds, ratios medians of the rounds' own.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.sampling import CLASSES, compare
from wvq.files.atomic import write_json
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.sampling import sample_codes
from wvq.hardware import processor_name


def draw(model: ImageCodeTransformer, batch: int, passes: int) -> Callable[[], float]:
    """Seconds a code of drawing whole pictures in so many passes; 0: a code a pass."""
    settings, condition = SamplingSettings(guidance_scale=2.0, passes=passes), Condition(torch.arange(batch) % CLASSES)

    def run() -> float:
        start = time.perf_counter()
        sample_codes(model, condition, list(range(batch)), settings)
        return (time.perf_counter() - start) / model.config.sequence_length

    return run


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--passes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    grid = [arguments.side, arguments.side]
    config = ImageCodeTransformerConfig(size="B", grid=grid, num_classes=CLASSES, target_positions=True)
    model = ImageCodeTransformer(config).eval()
    torch.nn.init.normal_(model.head.weight, 0.0, 0.02)
    rows = []
    for batch in arguments.batches:
        cases = {"ours": draw(model, batch, 0)}
        cases |= {f"passes_{passes}": draw(model, batch, passes) for passes in arguments.passes}
        rows.append({"batch": batch, **compare(cases, arguments.rounds)})
        print(rows[-1], flush=True)
    machine = {"machine": processor_name(), "torch": torch.__version__, "python": platform.python_version()}
    machine |= {"threads": torch.get_num_threads(), "codes": config.sequence_length, "rounds": arguments.rounds}
    if arguments.out:
        write_json(arguments.out, {**machine, "rows": rows})


if __name__ == "__main__":
    main()
