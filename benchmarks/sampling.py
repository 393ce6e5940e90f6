"""Time of one sampled code, compared with transformers' generate and with the bare matrix products.

    python -m benchmarks.sampling [--batches 1 4 16] [--rounds 5] [--codes 256] [--out docs/results/sampling_speed.json]
    python -m benchmarks.sampling --sides 8 16 32 [--batches 4] [--out docs/results/sampling_length.json]

ours: :func:`wvq.generator.sampling.sample_codes` of a generator of size B (12 layers of 768, K = 16,384, 16 x 16 codes,
one class token) under guidance 2. generate: ``LlamaForCausalLM.generate`` of the same sizes with ``guidance_scale=2``,
its own cache and classifier-free guidance. floor: the matrix products of one step alone, by ``F.linear`` with our
weights and as many rows. packed_floor: the same with packed weights (:mod:`wvq.generator.base.linear`). bf16, int8:
ours with reduced weights (:mod:`wvq.generator.reduced`). pass_of_8: a forward pass over 8 guessed codes, half of the
picture being known (:mod:`wvq.generator.next_code.speculative`), without the draws. With ``--sides``, whole pictures of
side x side codes are drawn; products: the packed floor, and the two products of attention with as many tokens as a
picture has on average. In each round every case runs once, in turn; times are medians over rounds, ratios medians of
the rounds' own.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from wvq.files.atomic import write_json
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.linear import packed_weights
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.decoder import GuidedDecoder
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.reduced import REDUCED, reduce_weights
from wvq.generator.sampling import sample_codes
from wvq.hardware import processor_name

CLASSES = 1000
SETTINGS = SamplingSettings(guidance_scale=2.0)


def build_generator(side: int = 16) -> ImageCodeTransformer:
    """A generator of size B over side x side codes."""
    torch.manual_seed(0)
    model = ImageCodeTransformer(ImageCodeTransformerConfig(size="B", grid=[side, side], num_classes=CLASSES)).eval()
    torch.nn.init.normal_(model.head.weight, 0.0, 0.02)
    return model


def build_llama(like: ImageCodeTransformer) -> LlamaForCausalLM:
    """A Llama of the same sizes."""
    config = like.config
    torch.manual_seed(0)
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.num_codes + CLASSES + 1,  # classes and the null class are prompts of one token
    }
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**sizes, **tokens, attn_implementation="sdpa")).eval()


def draw(model: ImageCodeTransformer, batch: int, codes: int) -> Callable[[], float]:
    """Seconds a code of drawing by this package."""
    labels = torch.arange(batch) % CLASSES
    length = model.config.sequence_length
    fixed = torch.full((batch, length), -1)
    fixed[:, codes:] = 0  # nothing is drawn after the last open place
    fixed = None if codes == length else fixed.view(batch, *model.config.grid)

    def run() -> float:
        start = time.perf_counter()
        sample_codes(model, Condition(labels), list(range(batch)), SETTINGS, fixed=fixed)
        return (time.perf_counter() - start) / codes

    return run


def generate(model: LlamaForCausalLM, batch: int, codes: int, num_codes: int) -> Callable[[], float]:
    """Seconds a code of drawing by transformers' ``generate``."""
    prompt = num_codes + torch.arange(batch)[:, None] % CLASSES
    null = torch.full((batch, 1), num_codes + CLASSES)

    def run() -> float:
        start = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            negative_prompt_ids=null,
            guidance_scale=SETTINGS.guidance_scale,
            do_sample=True,
            top_k=0,
            max_new_tokens=codes,
            min_new_tokens=codes,
        )
        return (time.perf_counter() - start) / codes

    return run


def floor(
    model: ImageCodeTransformer, batch: int, codes: int, cached: int = 0, packed: bool = False
) -> Callable[[], float]:
    """The products of a step with the weights and, with the keys and values of ``cached`` tokens."""
    rows, heads, size = 2 * batch, model.config.num_heads, model.config.head_dim
    query = torch.randn(rows, heads, 1, size)
    keys = [torch.randn(2, rows, heads, cached, size) for _ in model.blocks] if cached else []
    x = torch.randn(rows, model.config.hidden_size)
    wide = torch.randn(rows, model.config.intermediate_size)
    steps = min(codes, 32)

    def run() -> float:
        with packed_weights(model) if packed else nullcontext(), torch.inference_mode():
            start = time.perf_counter()
            for _ in range(steps):
                for number, block in enumerate(model.blocks):
                    block.attention.qkv(x)
                    if keys:
                        F.scaled_dot_product_attention(query, *keys[number])
                    block.attention.out(x)
                    block.feed_forward.gate_up(x)
                    block.feed_forward.down(wide)
                model.head(x)
            return (time.perf_counter() - start) / steps

    return run


def window_pass(model: ImageCodeTransformer, batch: int, codes: int, window: int = 8) -> Callable[[], float]:
    """Seconds of a pass over a window of guesses."""
    known, steps = codes // 2, min(codes, 32)
    guesses = torch.zeros(batch, model.config.sequence_length, dtype=torch.int64)

    def run() -> float:
        with packed_weights(model), torch.inference_mode():
            scales = SETTINGS.scales(model.config.sequence_length)
            decoder = GuidedDecoder(model, Condition(torch.arange(batch)), batch, scales)
            decoder.logits(guesses, known, known + 1)
            start = time.perf_counter()
            for _ in range(steps):
                decoder.logits(guesses, known + 1, known + 1 + window)
            return (time.perf_counter() - start) / steps

    return run


def compare(cases: dict[str, Callable[[], float]], rounds: int) -> dict:
    """Milliseconds a code of each case, and its ratio to the case "ours"."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in list(cases) if number % 2 else list(cases)[::-1]:
            times[name].append(cases[name]())

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 3)

    row = {f"{name}_ms": round(1000 * statistics.median(values), 2) for name, values in times.items()}
    return row | {f"{name}_to_ours": ratio(name, "ours") for name in times if name != "ours"}


def by_batch(batches: list[int], rounds: int, codes: int) -> list[dict]:
    """A row of figures for each batch size."""
    model = build_generator()
    llama = build_llama(model)
    reduced = {kind: reduce_weights(copy.deepcopy(model), kind) for kind in REDUCED}
    rows = []
    for batch in batches:
        cases = {
            "ours": draw(model, batch, codes),
            "generate": generate(llama, batch, codes, model.config.num_codes),
            "floor": floor(model, batch, codes),
            "packed_floor": floor(model, batch, codes, packed=True),
            **{kind: draw(other, batch, codes) for kind, other in reduced.items()},
            "pass_of_8": window_pass(model, batch, codes),
        }
        rows.append({"batch": batch, **compare(cases, rounds)})
        print(rows[-1], flush=True)
    return rows


def by_length(sides: list[int], batches: list[int], rounds: int) -> list[dict]:
    """A row of figures for each grid and batch size."""
    rows = []
    for side in sides:
        model, codes = build_generator(side), side * side
        for batch in batches:
            cases = {"ours": draw(model, batch, codes), "products": floor(model, batch, codes, codes // 2, packed=True)}
            cases["packed_floor"] = floor(model, batch, codes, packed=True)
            rows.append({"codes": codes, "batch": batch, **compare(cases, rounds)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codes", type=int, default=256, help="codes that are drawn, at most 256")
    parser.add_argument("--sides", type=int, nargs="+", help="of grids: the cost against the length of a picture")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.sides:
        rows = by_length(arguments.sides, arguments.batches, arguments.rounds)
    else:
        rows = by_batch(arguments.batches, arguments.rounds, arguments.codes)
    machine = {"machine": processor_name(), "torch": torch.__version__}
    machine |= {"transformers": transformers.__version__, "python": platform.python_version()}
    machine |= {"threads": torch.get_num_threads(), "codes": arguments.codes, "rounds": arguments.rounds}
    if arguments.out:
        write_json(arguments.out, {**machine, "rows": rows})


if __name__ == "__main__":
    main()
