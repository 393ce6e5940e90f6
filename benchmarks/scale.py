"""What ImageNet at 256 x 256 costs on 1, 8 and 64 GPUs: memory, cache, traffic and time, for docs/scale.md.

    python -m benchmarks.scale
    python -m benchmarks.scale --measure docs/results/scale.json

Operations of a training step are counted as torch runs it (on tensors without values), memory is the trainer's own
estimate (generator/memory.py); the rates of the hardware are its maker's, and the share reached is assumed.
``--measure`` compares the count with steps that are run here: the share of the rate of a large matrix product, taken
in turns with the steps, that a step reaches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from benchmarks.cost import GPUS, UTILIZATION, Operations
from wvq.eval.report.markdown import markdown_table
from wvq.files.atomic import write_json
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.memory import sampling_bytes, training_bytes
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.hardware import hardware
from wvq.memory import GIB

SIZES = ("B", "L", "3B")
WORLDS = (1, 8, 64)
PICTURES, EPOCHS, CROPS, BATCH = 1_281_167, 300, 10, 256
GPU, MEMORY, BANDWIDTH = "A100", 80 * GIB, 2.0e12  # bytes, and bytes/s of its memory
LINKS = {8: 300e9, 64: 25e9}  # bytes/s a GPU and direction: NVLink within a machine, one 200 Gb/s port a GPU beyond
ROOM = 0.9  # share of the memory that a run may use
SAMPLES, SAMPLE_BATCH = 50_000, 64


def build(size: str) -> ImageCodeTransformer:
    """A generator of a named size, without values."""
    config = ImageCodeTransformerConfig(size=size, num_classes=1000)
    with torch.device("meta"):
        return ImageCodeTransformer(config)


def operations_a_token(model: ImageCodeTransformer) -> float:
    """Operations a token of a step with one picture, forward and backward."""
    codes = torch.zeros(1, model.config.sequence_length, dtype=torch.int64, device="meta")
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    with Operations() as counted:
        model(codes, labels).loss.backward()
    return counted.total / (model.config.sequence_length + model.config.prefix_length)


def sharded(size: str, world: int) -> bool:
    """Whether the tables shard this size on ``world`` GPUs."""
    return size == "3B" and world > 1


def needed(model: ImageCodeTransformer, size: str, world: int, micro: int, checkpointing: bool) -> float:
    """Bytes of one GPU."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = 4 * (micro * world < BATCH) + 4 * (world > 1)  # gradients between the parts of a step; buckets of DDP
    if not sharded(size, world):
        return training_bytes(model.config, parameters, micro, True, checkpointing, mixed=True, gradients=held)
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    gathered = 2 * 2 * block  # one in use and the next one on its way, in bfloat16
    # Without autocast's copies of all weights: those of a block come and go.
    copies = training_bytes(model.config, 0, 0, True, checkpointing, mixed=True)
    step = training_bytes(model.config, 0, micro, True, checkpointing, mixed=True) - copies
    return step + parameters * 20 / world + gathered


def plan(model: ImageCodeTransformer, size: str, world: int) -> tuple[int, bool] | None:
    """The most pictures at once that fit by the estimate, and whether blocks must be recomputed for that."""
    for checkpointing in (False, True):
        micro = BATCH // world
        while micro >= 1:
            if needed(model, size, world, micro, checkpointing) <= ROOM * MEMORY:
                return micro, checkpointing
            micro //= 2
    return None


def training_rows() -> list[list[str]]:
    """Rows of the table of training."""
    rows = []
    for size in SIZES:
        model = build(size)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        operations = operations_a_token(model)
        tokens = BATCH * (model.config.sequence_length + model.config.prefix_length)
        for world in WORLDS:
            parts = plan(model, size, world)
            if parts is None:
                rows.append([size, str(world), "does not fit", *[""] * 5])
                continue
            micro, checkpointing = parts
            compute = operations * (4 / 3 if checkpointing else 1) * tokens / (world * GPUS[GPU] * UTILIZATION)
            # All-reduce of float32 gradients, or gathering bfloat16 weights twice and scattering float32 gradients.
            traffic = parameters * (2 * 2 + 4 if sharded(size, world) else 2 * 4) * (world - 1) / world
            wire = traffic / LINKS[world] if world > 1 else 0.0
            steps = PICTURES * EPOCHS / BATCH
            name = "FSDP2" if sharded(size, world) else "DDP" if world > 1 else ""
            rows.append(
                [
                    size,
                    f"{world} {name}".strip(),
                    f"{micro} x {BATCH // world // micro}" + (", recomputed" if checkpointing else ""),
                    f"{needed(model, size, world, micro, checkpointing) / GIB:.0f} GiB",
                    f"{traffic / 1e9:.2f} GB",
                    f"{wire * 1e3:.0f} ms" if world > 1 else "",
                    f"{compute * 1e3:,.0f} ms",
                    f"{max(compute, wire) * steps / 86_400:,.1f} to {(compute + wire) * steps / 86_400:,.1f}",
                ]
            )
    return rows


def sampling_rows() -> list[list[str]]:
    """Rows of the table of sampling."""
    rows = []
    for size in SIZES:
        model = build(size)
        config, inner = model.config, sum(p.numel() for p in model.parameters())
        cache = 2 * SAMPLE_BATCH * config.num_layers * 2 * config.hidden_size * (config.sequence_length / 2) * 2
        step = max((2 * inner + cache) / BANDWIDTH, 2 * inner * 2 * SAMPLE_BATCH / (GPUS[GPU] * UTILIZATION))
        seconds = step * config.sequence_length * SAMPLES / SAMPLE_BATCH
        memory = 2 * inner + sampling_bytes(config, SAMPLE_BATCH, SamplingSettings(guidance_scale=2.0), 2)
        hours = [f"{seconds / world / 60:,.1f} min" for world in WORLDS]
        rows.append([size, f"{memory / GIB:.1f} GiB", f"{step * 1e3:.2f} ms", *hours])
    return rows


def tables() -> str:
    """Both tables as Markdown."""
    training = ["size", "GPUs", "pictures at once x accumulated", "memory a GPU", "traffic a GPU and step"]
    training += ["its time", "computing a step", "days for 300 epochs"]
    sampling = ["size", "memory", "a code for 64 pictures", *(f"50,000 on {world}" for world in WORLDS)]
    return f"{markdown_table(training, training_rows())}\n\n{markdown_table(sampling, sampling_rows())}"


def measured(size: str, precision: str, pictures: int = 2, rounds: int = 7, side: int = 2048) -> dict:
    """Milliseconds a token of a training step here, and the share of a matrix product's rate; medians of pairs."""
    operations = operations_a_token(build(size))
    torch.manual_seed(0)
    model = ImageCodeTransformer(ImageCodeTransformerConfig(size=size, num_classes=1000)).train()
    codes = torch.randint(model.config.num_codes, (pictures, model.config.sequence_length))
    labels = torch.zeros(pictures, dtype=torch.int64)
    tokens = pictures * (model.config.sequence_length + model.config.prefix_length)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    square = torch.randn(side, side, dtype=dtype)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(codes, labels).loss
        loss.backward()
        model.zero_grad()

    def seconds(work) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    step(), square @ square  # warm
    pairs = [(seconds(step), seconds(lambda: square @ square)) for _ in range(rounds)]
    shares = [operations * tokens / taken / (2 * side**3 / product) for taken, product in pairs]
    return {
        "size": size,
        "precision": precision,
        "operations_a_token": operations,
        "milliseconds_a_token": statistics.median(taken for taken, _ in pairs) / tokens * 1e3,
        "product_operations_a_second": 2 * side**3 / statistics.median(product for _, product in pairs),
        "share_of_product": statistics.median(shares),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, help="also run steps here, and write what they took to this JSON file")
    arguments = parser.parse_args()
    print(tables())
    if arguments.measure:
        rows = [measured("B", precision) for precision in ("float32", "bf16")]
        write_json(arguments.measure, {"hardware": hardware(), "torch": torch.__version__, "steps": rows})
        for row in rows:
            print(row)


if __name__ == "__main__":
    main()
