"""What others take for the codes of benchmarks/gpu_sampling.py, on the same GPU: transformers' generate, a plain loop.

The generator of size B and ``LlamaForCausalLM`` of its sizes, in bfloat16, guidance 2, whole pictures. ``generate, own
guidance``: with ``guidance_scale``, which reads the unconditional half apart, with a cache of its own. ``generate, two
rows``: both halves as rows of one batch, guided and drawn by a logits processor; its static cache lets transformers
compile the step. ``plain loop``: a short loop over the same modules as ours, keys and values by ``torch.cat``.
``first_s``: the few codes that are drawn before those that are timed, or, compiled, a whole batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.gpu_machine import median_seconds, wait_for
from benchmarks.gpu_sampling import SETTINGS, build
from benchmarks.sampling import build_llama
from wvq.errors import first_line
from wvq.generator.base.body import rotary_table, rotate
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.guidance import guide
from wvq.generator.next_code.modeling import ImageCodeTransformer

SCALE = 2.0
WARMUP = 8  # codes, before the whole pictures that are timed
Peer = Callable[[torch.Tensor, int], torch.Tensor]  # of labels and a number of codes


class GuidedRows(LogitsProcessor):
    """Guides a batch of two halves and draws; all scores but those of the drawn codes become -inf, in both halves."""

    def __init__(self, num_codes: int):
        self.num_codes = num_codes

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = draw_codes(guide(scores[:, : self.num_codes], SCALE)).repeat(2)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn[:, None], 0.0)


def draw_codes(logits: torch.Tensor) -> torch.Tensor:
    """Codes (B,) from guided logits (B, K)."""
    return torch.multinomial(logits.float().softmax(-1), 1).squeeze(1)


@torch.inference_mode()
def plain_loop(
    model: ImageCodeTransformer,
    labels: torch.Tensor,
    length: int,
    draw: Callable[[torch.Tensor], torch.Tensor] = draw_codes,
) -> torch.Tensor:
    """Codes (B, T), one pass a code in eager mode, the cache extended by concatenation.

    Args:
        model: a generator conditional on classes.
        labels: (B,) classes.
        length: codes of a picture that are drawn.
        draw: codes (B,) of guided logits (B, K).
    """
    config, condition = model.config, Condition(labels)
    x = model.condition(condition.cat(condition.null()), 2 * len(labels)).tokens
    cos, sin = rotary_table(config.prefix_length, *config.grid, config.head_dim, config.rope_theta, x.device)
    cache: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * config.num_layers
    codes: list[torch.Tensor] = []
    for place in range(length):
        for layer, block in enumerate(model.blocks):
            heads = block.attention.qkv(block.attention_norm(x)).unflatten(-1, (3, config.num_heads, config.head_dim))
            q, k, v = (part.transpose(1, 2) for part in heads.unbind(2))
            q, k = (rotate(part, cos[place : place + 1], sin[place : place + 1]) for part in (q, k))
            if (past := cache[layer]) is not None:
                k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            cache[layer] = k, v
            x = x + block.attention.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + block.feed_forward(block.feed_forward_norm(x))
        codes.append(draw(guide(model.logits(model.norm(x))[:, 0].float(), SCALE)))
        x = model.embed_codes(codes[-1].repeat(2)[:, None])
    return torch.stack(codes, 1)


def generate_two_rows(llama: LlamaForCausalLM, labels: torch.Tensor, num_codes: int, length: int, compiled: bool):
    """Codes (B, T) by ``generate`` with a static cache."""
    prompt = torch.cat((labels, torch.full_like(labels, llama.config.vocab_size - num_codes - 1)))[:, None] + num_codes
    tokens = llama.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,  # the processor has drawn
        logits_processor=LogitsProcessorList([GuidedRows(num_codes)]),
        max_new_tokens=length,
        min_new_tokens=length,
        cache_implementation="static",
        disable_compile=not compiled,
    )
    return tokens[: len(labels), 1:]


def generate_own_guidance(llama: LlamaForCausalLM, labels: torch.Tensor, num_codes: int, length: int) -> torch.Tensor:
    """Tokens (B, T) by ``generate`` with its own guidance."""
    prompt = num_codes + labels[:, None]
    null = torch.full_like(prompt, llama.config.vocab_size - 1)
    settings: dict[str, Any] = {"guidance_scale": SCALE, "do_sample": True, "top_k": 0}
    settings |= {"max_new_tokens": length, "min_new_tokens": length, "negative_prompt_ids": null}
    return llama.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[:, 1:]


def sampling_peers(device: str, tiny: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each peer and batch that the time allows; the compiled ones last, at the batch of 1 first."""
    assert SETTINGS.guidance_scale == SCALE
    end = time.monotonic() + seconds
    model = build("B", device, tiny).to(torch.bfloat16)
    with torch.device(device):
        llama = build_llama(model).to(torch.bfloat16)
    codes, whole = model.config.num_codes, model.config.sequence_length
    peers: dict[str, Peer] = {
        "generate, two rows": lambda labels, length: generate_two_rows(llama, labels, codes, length, False),
        "plain loop": lambda labels, length: plain_loop(model, labels, length),
        "generate, own guidance": lambda labels, length: generate_own_guidance(llama, labels, codes, length),
    }
    compiled = "generate, two rows, compiled"
    peers[compiled] = lambda labels, length: generate_two_rows(llama, labels, codes, length, True)
    cases = [(name, batch, 6) for batch in (1, 64) for name in peers if name != compiled]
    cases += [(compiled, batch, 20) for batch in (1, 64)]
    for name, batch, needs in cases:
        row: dict[str, Any] = {"peer": name, "size": "B", "batch": batch}
        if time.monotonic() + needs * (not tiny) > end:
            yield row | {"failed": "no time was left"}
            continue
        run, labels = peers[name], torch.arange(batch, device=device)
        try:
            start = time.perf_counter()
            run(labels, whole if name == compiled else WARMUP)  # what is compiled depends on the length
            wait_for(device)
            first = time.perf_counter() - start
            taken = median_seconds(lambda run=run, labels=labels: run(labels, whole), device, rounds=1, warmup=0)
        except Exception as error:  # out of memory, or whatever Inductor raises
            yield row | {"failed": first_line(error)}
            continue
        yield row | {"ms_a_code": 1e3 * taken / whole, "pictures_a_second": batch / taken, "first_s": first}
