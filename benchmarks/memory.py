"""Memory that drawing and training use, compared with the estimates by which they are refused.

    python -m benchmarks.memory [--out docs/results/memory.json]

Each case runs in its own process: once to load libraries and tables, then measured, as the highest resident memory
above that before it (Linux's ``VmHWM``). glibc is set to give memory back in pieces from 64 KiB on: by itself it keeps
some of the pieces below 32 MiB for later, which is free, but counts as resident. Estimates:
:mod:`wvq.generator.memory`, :mod:`wvq.tokenizer.memory`, :mod:`wvq.pipelines.memory`. Everything on the CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.generator import Codes
from wvq.files.atomic import write_json
from wvq.generator.base.linear import packed_bytes
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.memory import training_bytes
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, ObjectiveConfig
from wvq.generator.task import GeneratorTask
from wvq.hardware import hardware
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.memory import drawing_bytes
from wvq.settings.train import TrainConfig
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.training.acceleration import build_accelerator
from wvq.training.trainer import Trainer

M_MMAP_THRESHOLD = -3  # of glibc's mallopt
GENERATOR = {"hidden_size": 384, "num_layers": 6, "num_heads": 6, "grid": [8, 8], "num_codes": 16_384}
GENERATOR |= {"num_classes": 1000}
FEW_CODES = {"num_codes": 1024}
TOKENIZER = {"base_channels": 16, "channel_multipliers": [1, 1, 2, 2], "code_dim": 8}

# Changes of the generator's config, pictures at once, and then type and sampling settings, or settings of training.
DRAWING = (
    (FEW_CODES, 32, {"guidance_scale": 2.0}),
    ({}, 32, {"guidance_scale": 2.0, "dtype": "bfloat16"}),
    ({}, 32, {"top_k": 100, "top_p": 0.9}),
    ({}, 8, {"guidance_scale": 2.0, "window": 16}),
    ({}, 8, {"guidance_scale": 2.0, "deterministic": True}),
)
TRAINING = (
    (FEW_CODES, 32, {}),
    (FEW_CODES, 32, {"gradient_checkpointing": True}),
    (FEW_CODES, 32, {"mixed_precision": "bf16"}),
    ({}, 16, {"gradient_accumulation_steps": 2, "ema_decay": 0.0}),
)


def resident(name: str) -> int:
    """Bytes of a row of Linux's status of this process."""
    rows = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith(f"{name}:"))


def peak(work: Callable[[], None]) -> int:
    """Resident bytes that ``work`` adds at most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak to the present value
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def build(changes: dict) -> ImageCodeTransformer:
    """The generator of all cases, with some fields of its config changed."""
    torch.manual_seed(0)
    return ImageCodeTransformer(ImageCodeTransformerConfig(**GENERATOR | changes))


def drawing(changes: dict, batch: int, settings: dict) -> tuple[int, int]:
    """Bytes measured and estimated of one call of a pipeline."""
    settings = dict(settings)
    dtype = getattr(torch, settings.pop("dtype", "float32"))
    generator = build(changes)
    config = generator.config
    size = {"image_size": 8 * config.grid[0], "num_codes": config.num_codes}
    tokenizer = WassersteinVQModel(WassersteinVQConfig(**TOKENIZER | size))
    pipe = ImageGenerationPipeline(tokenizer.to(dtype), generator.to(dtype))
    sampling = SamplingSettings(**settings)

    def call() -> None:
        pipe(num_images=batch, batch_size=batch, seed=0, output_type="np", **settings)

    estimate = drawing_bytes(pipe, batch, sampling)
    if not sampling.deterministic:  # with it the copies are part of the estimate
        estimate += packed_bytes(generator)
    call()
    return peak(call), estimate


def training(changes: dict, batch: int, settings: dict) -> tuple[int, int]:
    """Bytes measured and estimated of a model, its optimizer, its average and two steps."""
    config = TrainConfig(batch_size=batch, learning_rate=1e-4, **{"ema_decay": 0.999} | settings)
    sizes = []

    def steps(changes: dict) -> None:
        model = build(changes)
        task = GeneratorTask(None, None, ConditionConfig(), ObjectiveConfig(), config, {})
        data = Codes(64, model.config.sequence_length, model.config.num_codes)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(task, model, data, config, Path(folder), build_accelerator(config))
        batches = iter(trainer._loader())
        for _ in range(2):
            trainer._step(batches)
        sizes.append((model.config, sum(parameter.numel() for parameter in model.parameters())))

    steps(changes)
    measured = peak(lambda: steps(changes))
    parts = config.gradient_accumulation_steps
    estimate = training_bytes(
        *sizes[-1],
        batch // parts,
        config.ema_decay > 0,
        config.gradient_checkpointing,
        mixed=config.mixed_precision == "bf16",
        fused=False,
        gradients=4 * (parts > 1),
    )
    return measured, estimate


CASES = {"drawing": (drawing, DRAWING), "training": (training, TRAINING)}


def run(kind: str, number: int) -> dict:
    """One case, in this process."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    work, cases = CASES[kind]
    changes, batch, settings = cases[number]
    measured, estimated = work(changes, batch, settings)
    row = {"kind": kind, "generator": changes, "batch": batch, "settings": settings}
    return row | {
        "measured_mib": round(measured / 2**20, 1),
        "estimated_mib": round(estimated / 2**20, 1),
        "estimated_to_measured": round(estimated / measured, 3),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=2, metavar=("KIND", "NUMBER"), help="run this one alone, here")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run(arguments.case[0], int(arguments.case[1]))))
        return
    rows = []
    for kind, (_, cases) in CASES.items():
        for number in range(len(cases)):
            command = [sys.executable, "-m", "benchmarks.memory", "--case", kind, str(number)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
            if arguments.out:
                write_json(arguments.out, {"hardware": hardware(), "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
