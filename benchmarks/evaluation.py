"""What measuring samples costs in addition to drawing them and computing their features.

    python -m benchmarks.evaluation runs/openmoji [--num_images 256] [--rounds 3] [--out result.json]

drawn: :class:`wvq.eval.samples.drawing.Samples` alone. features: the feature network alone over those pictures.
streamed: both, and everything that makes them resumable (:mod:`wvq.eval.features.shards`). Each round runs the three
in turn; overhead is the median over rounds of streamed / (drawn + features) - 1.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from wvq.eval.features.networks import load_feature_network
from wvq.eval.features.shards import FeatureShards, stream_features
from wvq.eval.samples.conditions import Conditions
from wvq.eval.samples.drawing import Samples
from wvq.files.atomic import write_json
from wvq.hardware import processor_name
from wvq.pipelines.image_generation import ImageGenerationPipeline


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pipe = ImageGenerationPipeline.from_pretrained(arguments.pipeline)
    network = load_feature_network("efficientnet_lite0")
    count, batch = arguments.num_images, arguments.batch_size
    ids = [number % pipe.generator.config.num_classes for number in range(count)]
    samples = Samples(pipe, count, Conditions([*ids], ids, None, None), pipe.sampling, batch_size=batch)
    runs = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
    times: dict[str, list[float]] = {"drawn": [], "features": [], "streamed": []}

    for _ in range(arguments.rounds):
        start = time.perf_counter()
        pictures = [samples.draw(run).images for run in runs]
        times["drawn"].append(time.perf_counter() - start)
        start = time.perf_counter()
        for part in pictures:
            network(part)
        times["features"].append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            stream_features(samples.draw, range(count), network, FeatureShards(Path(folder) / "s", {}), batch)
            times["streamed"].append(time.perf_counter() - start)
    ratios = [streamed / (a + b) for a, b, streamed in zip(*times.values(), strict=True)]
    result = {f"{name}_seconds": round(statistics.median(values), 2) for name, values in times.items()}
    result |= {"overhead": round(statistics.median(ratios) - 1, 4), "num_images": count, "rounds": arguments.rounds}
    result |= {"machine": processor_name(), "torch": torch.__version__}
    print(result)
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
