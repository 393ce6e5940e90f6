"""Training on a GPU: steps of both stages against loops by hand, memory against its estimates, loading of pictures.

Parts of `python -m benchmarks.gpu`. Each takes a device, whether sizes are tiny (for a CPU, to see that the part runs)
and its seconds, after which no case begins; each gives its rows one by one, those of most value first.

ours: a step of the Trainer as the commands run it. hand: forward, loss, backward, clipping, a fused AdamW step and the
average of the weights over the same network, its parts compiled as ours. llama: the same loop over transformers'
LlamaForCausalLM of the same sizes, each layer compiled. `model_share` is the operations of a step, as torch counts them
(attention over all pairs), without what is computed again, over 989 TFLOP/s, an H100's and H200's dense bfloat16 rate
by the maker's data sheet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from benchmarks.cost import GPUS, Operations
from benchmarks.gpu_loading import loading_cases
from benchmarks.gpu_steps import Step, cost_of, peak_bytes, rows_in_time
from benchmarks.gpu_train_steps import (
    build_generator,
    hand_generator_step,
    hand_tokenizer_step,
    llama_step,
    our_generator_step,
    our_tokenizer_step,
    tokenizer_parts,
)
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.memory import sampling_bytes, training_bytes, whole_pass_bytes
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.sampling import sample_codes
from wvq.memory import GIB, available_memory
from wvq.tokenizer.memory import decoding_bytes

Row = dict[str, Any]
Case = tuple[Row, Callable[[], Row]]  # its names, and what measures it
PEAK = GPUS["H100"]
ROOM = 0.9  # share of the free memory that a step may take by its estimate


# ---- the generator


@functools.cache
def operations(size: str, tiny: bool) -> float:
    """Operations of a step with one picture, forward and backward."""
    model = build_generator(size, "meta", tiny)
    codes = torch.zeros(1, model.config.sequence_length, dtype=torch.int64, device="meta")
    with Operations() as counted:
        model(codes, torch.zeros(1, dtype=torch.int64, device="meta")).loss.backward()
    return counted.total


def estimate(model: ImageCodeTransformer, batch: int, checkpointing: bool, **settings: Any) -> int:
    """The trainer's own estimate of a step in bfloat16 with an average of the weights."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return training_bytes(model.config, parameters, batch, True, checkpointing, mixed=True, **settings)


def most_pictures(size: str, device: str, tiny: bool, checkpointing: bool, most: int) -> int:
    """The most pictures at once, by halves of ``most``, that fit by the estimate."""
    model, batch = build_generator(size, "meta", tiny), most
    free = available_memory(torch.device(device)) or 0
    while batch > 1 and estimate(model, batch, checkpointing) > ROOM * free:
        batch //= 2
    return batch


GENERATOR_STEPS = {"ours": our_generator_step, "hand": hand_generator_step, "llama": llama_step}
# Kind of step, size, pictures at once at most, whether it is compiled, whether blocks are computed again. Compiling
# takes some ten seconds: a case without it gives the first row.
GENERATOR_CASES = (
    ("ours", "L", 64, False, False),
    ("llama", "L", 64, False, False),
    ("ours", "L", 64, True, False),
    ("hand", "L", 64, True, False),
    ("llama", "L", 64, True, False),
    ("ours", "3B", 32, False, True),
    ("ours", "B", 128, False, False),
    ("ours", "B", 128, True, False),
    ("hand", "B", 128, True, False),
    ("llama", "B", 128, True, False),
    ("hand", "3B", 32, False, True),
    ("ours", "3B", 32, True, True),
)


def generator_training(device: str, tiny: bool, seconds: float) -> Iterator[Row]:
    """Steps of the generator in bfloat16, 256 codes a picture, K = 16,384: tokens a second and share of the peak."""

    def measure(kind: str, size: str, most: int, compiled: bool, again: bool) -> Row:
        batch = 4 if tiny else most_pictures(size, device, tiny, again, most)

        def build() -> Step:
            # Llama takes the sizes alone: what is not there takes no memory.
            model = build_generator(size, "meta" if kind == "llama" else device, tiny)
            expected.append(estimate(model, batch, again, compiled=compiled and not tiny))
            tokens.append(model.config.sequence_length)
            return GENERATOR_STEPS[kind](model, batch, device, compiled and not tiny, again)

        expected: list[int] = []
        tokens: list[int] = []
        row = cost_of(build, device, profiled=compiled)
        rate = batch / row["ms"] * 1e3
        figures = {"batch": batch, "tokens_a_second": rate * tokens[0]}
        figures["model_share"] = rate * operations(size, tiny) / PEAK
        if "peak_GiB" in row and kind == "ours":
            figures |= {"estimate_GiB": expected[0] / GIB, "peak_to_estimate": row["peak_GiB"] * GIB / expected[0]}
        return figures | row

    names = ("step", "size", "most", "compiled", "recomputed")
    cases = GENERATOR_CASES[1:4] if tiny else GENERATOR_CASES
    return rows_in_time(((dict(zip(names, case, strict=True)), lambda c=case: measure(*c)) for case in cases), seconds)


# ---- the tokenizer


TOKENIZER_STEPS = {"ours": our_tokenizer_step, "hand": hand_tokenizer_step}
# Kind of step, recipe, pictures at once, whether it is compiled.
TOKENIZER_CASES = (
    ("ours", "tokenizer", 32, False),
    ("hand", "tokenizer", 32, False),
    ("ours", "tokenizer_gan", 16, False),
    ("hand", "tokenizer_gan", 16, False),
    ("ours", "tokenizer", 32, True),  # compiling takes a minute
    ("hand", "tokenizer", 32, True),
    ("ours", "tokenizer_gan", 16, True),
    ("hand", "tokenizer_gan", 16, True),
)


def tokenizer_training(device: str, tiny: bool, seconds: float) -> Iterator[Row]:
    """Steps of the recipes for ImageNet at 256 pixels in bfloat16 and channels_last: pictures a second."""

    def measure(kind: str, recipe: str, most: int, compiled: bool) -> Row:
        batch = 2 if tiny else most

        def build() -> Step:
            task, model = tokenizer_parts(recipe, device, tiny, batch, compiled and not tiny)
            return TOKENIZER_STEPS[kind](task, model, device)

        row = cost_of(build, device, profiled=kind == "ours")
        return {"batch": batch, "pictures_a_second": batch / row["ms"] * 1e3, **row}

    names = ("step", "recipe", "most", "compiled")
    cases = TOKENIZER_CASES
    return rows_in_time(((dict(zip(names, case, strict=True)), lambda c=case: measure(*c)) for case in cases), seconds)


# ---- memory


def generator_memory(device: str, tiny: bool, size: str, batch: int, again: bool, fields: Mapping[str, Any]) -> Row:
    """Two steps of training: what is allocated at most, and the estimate."""
    expected: list[int] = []

    def train() -> None:
        model = build_generator(size, device, tiny, **fields)
        expected.append(estimate(model, batch, again, fused=device != "cpu"))
        step = our_generator_step(model, batch, device, False, again)
        for _ in range(2):
            step()

    return compared(peak_bytes(train, device), expected[0]) | {"batch": batch}


def pass_memory(device: str, tiny: bool, size: str, batch: int) -> Row:
    """Losses of whole pictures without gradients, beside the weights."""
    model = build_generator(size, device, tiny).eval()
    codes = torch.zeros(batch, model.config.sequence_length, dtype=torch.int64, device=device)
    with torch.no_grad():
        model(codes)  # tables that stay
        measured = peak_bytes(lambda: model(codes), device)
    return compared(measured, whole_pass_bytes(model.config, batch)) | {"batch": batch}


def sampling_memory(device: str, tiny: bool, size: str, batch: int) -> Row:
    """Drawing whole pictures under guidance in bfloat16, as the sampler does by itself, beside the weights."""
    settings = SamplingSettings(guidance_scale=2.0)
    model = build_generator(size, device, tiny).eval().to(torch.bfloat16)
    condition = Condition(torch.arange(batch, device=device))
    measured = peak_bytes(lambda: sample_codes(model, condition, list(range(batch)), settings), device)
    return compared(measured, sampling_bytes(model.config, batch, settings, model.dtype.itemsize)) | {"batch": batch}


def decoding_memory(device: str, tiny: bool, batch: int) -> Row:
    """Decoding codes by the tokenizer of the recipe for ImageNet, beside the weights."""
    _, model = tokenizer_parts("tokenizer", device, tiny, batch, False)
    codes = torch.zeros(batch, *model.config.grid, dtype=torch.int64, device=device)
    model.eval().requires_grad_(False)
    model.decode_codes(codes)
    measured = peak_bytes(lambda: model.decode_codes(codes), device)
    return compared(measured, decoding_bytes(model.config, batch, device_type=device)) | {"batch": batch}


def compared(measured: int, expected: int) -> Row:
    """Both in GiB, and their ratio."""
    return {"peak_GiB": measured / GIB, "estimate_GiB": expected / GIB, "peak_to_estimate": measured / expected}


MEMORY_CASES = (
    ("L", 32, False, {}),
    ("B", 64, False, {}),
    ("L", 32, True, {}),
    ("L", 32, False, {"dropout": 0.1, "token_dropout": 0.1}),
    ("B", 64, True, {"dropout": 0.1, "token_dropout": 0.1}),
    ("B", 32, False, {"num_kv_heads": 4, "qk_norm": True}),
    ("B", 64, False, {"num_codes": 65_536}),
)


def memory(device: str, tiny: bool, seconds: float) -> Iterator[Row]:
    """What steps allocate at most, and the estimates by which runs are refused."""
    batch = 4 if tiny else 64

    def training(size: str, pictures: int, again: bool, fields: Mapping[str, Any]) -> Case:
        names = {"memory": f"training {size}", "recomputed": again, "changes": str(fields or "")}
        pictures = 4 if tiny else pictures
        return names, lambda: generator_memory(device, tiny, size, pictures, again, fields)

    first, *others = (training(*case) for case in MEMORY_CASES[: 2 if tiny else None])
    cases: list[Case] = [
        first,
        ({"memory": "decoding"}, lambda: decoding_memory(device, tiny, batch)),
        ({"memory": "sampling B"}, lambda: sampling_memory(device, tiny, "B", batch)),
        ({"memory": "sampling L"}, lambda: sampling_memory(device, tiny, "L", batch)),
        *others,
        ({"memory": "losses B"}, lambda: pass_memory(device, tiny, "B", batch)),
    ]
    return rows_in_time(cases, seconds)


# ---- loading


def loader(device: str, tiny: bool, seconds: float) -> Iterator[Row]:
    """JPEGs of 500 x 375 to crops of 256 pixels: pictures a second on one core, and decoded on the GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from rows_in_time(loading_cases(device, tiny), seconds)
    finally:
        torch.set_num_threads(threads)
