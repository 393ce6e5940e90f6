"""What reduced weights and windows do on a trained pipeline.

    python -m benchmarks.trained runs/generation/cells/sliced-1024 --codes runs/generation/codes/sliced-1024-seed0

Reduced weights: mean KL divergence of the next-code distribution from that of the float32 weights, over held-out
pictures with their classes. Windows: forward passes and seconds a picture, one picture at a time under guidance 1.5, as
a ratio to the plain sampler; ``same_codes`` counts the pictures whose codes equal those of the first window.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from wvq.data.codes import CodeDataset
from wvq.files.atomic import write_json
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.filters import FREE
from wvq.generator.base.linear import packed_weights
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.decoder import GuidedDecoder
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.next_code.speculative import WindowedSampler
from wvq.generator.reduced import REDUCED, reduce_weights
from wvq.generator.sampling import sample_codes

PICTURES = 256


@torch.inference_mode()
def divergences(folder: Path, codes: CodeDataset) -> dict[str, float]:
    """Mean KL(float32 || reduced) in nats a code."""
    batch = codes.batch(range(min(PICTURES, len(codes))))
    plain = ImageCodeTransformer.from_pretrained(folder)
    labels = batch["label"] if plain.config.num_classes else None
    expected = plain(batch["codes"], labels).logits.log_softmax(-1)
    divergence = {}
    for kind in REDUCED:
        model = reduce_weights(ImageCodeTransformer.from_pretrained(folder), kind)
        other = model(batch["codes"], labels).logits.log_softmax(-1)
        divergence[kind] = float((expected.exp() * (expected - other)).sum(-1).double().mean())
    return divergence


def windows(model: ImageCodeTransformer, sizes: list[int], pictures: int) -> list[dict]:
    """Passes and time of each window, picture by picture, in turn."""
    config = model.config
    times: dict[int, list[float]] = {size: [] for size in (0, *sizes)}
    passes: dict[int, list[int]] = {size: [] for size in sizes}
    same = dict.fromkeys(sizes, 0)
    for seed in range(pictures):
        labels = torch.tensor([seed % config.num_classes]) if config.num_classes else None
        condition = Condition(labels)
        settings = SamplingSettings(guidance_scale=1.5)
        start = time.perf_counter()
        sample_codes(model, condition, [seed], settings)
        times[0].append(time.perf_counter() - start)
        first = None
        for size in sizes:
            codes = torch.full((1, config.sequence_length), FREE)
            start = time.perf_counter()
            with torch.inference_mode():
                decoder = GuidedDecoder(model, condition, 1, settings.scales(config.sequence_length))
                sampler = WindowedSampler(codes, decoder, [seed], settings.updated(window=size))
                passes[size].append(sampler.fill(0, config.sequence_length))
            times[size].append(time.perf_counter() - start)
            first = codes if first is None else first
            same[size] += int(torch.equal(codes, first))
    return [
        {
            "window": size,
            "passes": round(statistics.mean(passes[size]), 2),
            "seconds": round(statistics.median(times[size]), 4),
            "plain_to_window": round(
                statistics.median(a / b for a, b in zip(times[0], times[size], strict=True)), 3
            ),
            "same_codes": f"{same[size]} of {pictures}",
        }
        for size in sizes
    ]  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--codes", type=Path, required=True, help="code cache of the pipeline's tokenizer")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.pipeline / "generator"
    result = {"pipeline": arguments.pipeline.name}
    result["divergence"] = divergences(folder, CodeDataset(arguments.codes, "validation"))
    print(result, flush=True)
    model = ImageCodeTransformer.from_pretrained(folder)
    with packed_weights(model):
        result["windows"] = windows(model, arguments.windows, arguments.pictures)
    for row in result["windows"]:
        print(row)
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
