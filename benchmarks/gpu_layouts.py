"""Time of a picture of 256 x 256 by each layout of codes on a GPU; a part of benchmarks/gpu.py.

Random weights, 1,000 classes, bfloat16, guidance 2. ``next_scale`` (680 codes, ten passes) beside ``next_code`` (256
codes, a recorded step each), both 16 layers of 1,024 with K 4,096; then size B with K 16,384: a code a pass, 16 and 32
passes in any order, and two codes at each position by a head over depth and by parallel ones. The steps of the last
three are not recorded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu_machine import median_seconds, wait_for
from wvq.errors import first_line
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.depth.configuration import DepthTransformerConfig
from wvq.generator.models import new_generator
from wvq.generator.next_code.captured import release_captures
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.generator.sampling import sample_codes
from wvq.memory import GIB

BATCHES = (1, 16, 64)
ROUNDS = 3
NEEDS = 8  # seconds without which a row is left out
TINY: dict[str, Any] = {"size": None, "num_layers": 2, "hidden_size": 64, "num_heads": 2, "num_codes": 64}


@dataclass(frozen=True)
class Case:
    """A generator, the fields of its config, and in how many passes it draws (0: as many as its kind has)."""

    name: str
    config: type[GeneratorConfig]
    fields: dict[str, Any] = field(default_factory=dict)
    passes: int = 0


SCALE, BASE = {"size": "d16", "num_codes": 4_096}, {"size": "B", "num_codes": 16_384}
CASES = [
    Case("next_scale", NextScaleTransformerConfig, SCALE),
    Case("next_code", ImageCodeTransformerConfig, SCALE),
    Case("next_code, B", ImageCodeTransformerConfig, BASE),
    Case("any order, B", ImageCodeTransformerConfig, BASE | {"target_positions": True}, 16),
    Case("any order, B", ImageCodeTransformerConfig, BASE | {"target_positions": True}, 32),
    Case("depth, B", DepthTransformerConfig, BASE),
    Case("parallel, B", DepthTransformerConfig, BASE | {"depth_head": "parallel"}),
]


def build(case: Case, device: str, tiny: bool) -> CodeGenerator:
    """A generator with random weights, in bfloat16 and eval mode."""
    fields = case.fields | {"num_classes": 1_000} | (TINY if tiny else {})
    if case.config is NextScaleTransformerConfig:
        fields |= {"scales": [1, 2, 4], "grid": [4, 4], "code_dim": 8} if tiny else {}
    else:
        fields |= {"grid": [4, 4] if tiny else [16, 16], "head": "normal"}
    torch.manual_seed(0)
    with torch.device(device):
        model = new_generator(case.config(**fields)).eval()
    return model.to(torch.bfloat16)


def layouts(device: str, tiny: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each case and batch that the time allows."""
    end = time.monotonic() + seconds
    for case in CASES:
        model: CodeGenerator | None = None  # its memory is free before the next is made
        for batch in BATCHES[: 1 if tiny else None]:
            row: dict[str, Any] = {"layout": case.name, "batch": batch, "passes": case.passes or None}
            if time.monotonic() + NEEDS * (not tiny) > end:
                yield row | {"failed": "no time was left"}
                continue
            try:
                model = model or build(case, device, tiny)
                yield row | measure(model, batch, min(case.passes, 16) if tiny else case.passes)
            except Exception as error:  # out of memory, or whatever Triton raises
                yield row | {"failed": first_line(error)}
        if model is not None:
            release_captures(model)


def measure(model: CodeGenerator, batch: int, passes: int) -> dict[str, float]:
    """Milliseconds a batch, pictures a second, and the peak of memory."""
    device = model.device.type
    settings = SamplingSettings(guidance_scale=2.0, passes=passes)
    condition = Condition(torch.arange(batch, device=model.device))
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def draw() -> None:
        sample_codes(model, condition, list(range(batch)), settings)

    draw()
    wait_for(device)
    taken = median_seconds(draw, device, ROUNDS, warmup=0)
    row = {"ms": 1e3 * taken, "pictures_a_second": batch / taken}
    if device == "cuda":
        row["peak_GiB"] = torch.cuda.max_memory_allocated() / GIB
    return row
