"""A training step of the generator, compared with transformers' LlamaForCausalLM of the same sizes.

    python -m benchmarks.generator [--rounds 7] [--size B] [--out docs/results/generator_speed.json]

ours: a step of the Trainer (AdamW, clipping, figures for the log) on codes of noise, classes, 256 codes a picture,
K = 16,384, no dropout. llama: the same number of tokens through LlamaForCausalLM with the same layers, heads, width and
attention (SDPA), its own loss, clipping and a fused AdamW step. In each round both run once; ratios are medians of the
rounds' own.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.utils.data import Dataset

from benchmarks.sampling import CLASSES, build_llama
from benchmarks.training import rate
from wvq.files.atomic import write_json
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, ObjectiveConfig
from wvq.generator.task import GeneratorTask
from wvq.hardware import processor_name
from wvq.settings.train import TrainConfig
from wvq.training.acceleration import build_accelerator
from wvq.training.trainer import Trainer


class Codes(Dataset):
    """Pictures of random codes with classes."""

    def __init__(self, count: int, length: int, num_codes: int):
        generator = torch.Generator().manual_seed(0)
        self.codes = torch.randint(0, num_codes, (count, length), generator=generator)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        return {"codes": self.codes[key[1]], "class_labels": torch.tensor(key[1] % CLASSES)}


def build(size: str) -> ImageCodeTransformer:
    """A generator of a named size, without dropout."""
    torch.manual_seed(0)
    config = ImageCodeTransformerConfig(size=size, num_classes=CLASSES, dropout=0.0, token_dropout=0.0, head="normal")
    return ImageCodeTransformer(config)


def build_step(model: ImageCodeTransformer, batch: int, precision: str, folder: Path) -> Callable[[], None]:
    """A step of the Trainer."""
    config = TrainConfig(batch_size=batch, learning_rate=1e-4, mixed_precision=precision)
    task = GeneratorTask(None, None, ConditionConfig(), ObjectiveConfig(), config, {})
    data = Codes(256, model.config.sequence_length, model.config.num_codes)
    trainer = Trainer(task, model, data, config, folder, build_accelerator(config))
    batches = iter(trainer._loader())
    return lambda: trainer._step(batches)


def llama(like: ImageCodeTransformer, batch: int, precision: str) -> Callable[[], None]:
    """A step of a Llama of the same sizes, written by hand."""
    model = build_llama(like).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    length, num_codes = like.config.sequence_length, like.config.num_codes
    data = Codes(256, length, num_codes).codes

    def step() -> None:
        rows = torch.randint(0, len(data), (batch,))
        tokens = torch.cat((num_codes + rows[:, None] % CLASSES, data[rows]), 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            # The last code is a target only, as in ours: both read one condition and length - 1 codes.
            logits = model(tokens[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", default="B")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, batch = [], arguments.batch
    for precision in ("no", "bf16"):
        model = build(arguments.size)
        tokens = batch * model.config.sequence_length
        with tempfile.TemporaryDirectory() as folder:
            cases = {"ours": build_step(model, batch, precision, Path(folder)), "llama": llama(model, batch, precision)}
            rates: dict[str, list[float]] = {name: [] for name in cases}
            for step in cases.values():
                rate(step, 1)
            for number in range(arguments.rounds):
                for name in list(cases) if number % 2 else list(cases)[::-1]:
                    rates[name].append(rate(cases[name], 2, tokens))
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["llama"], strict=True))
        row = {f"{name}_tokens_per_second": round(statistics.median(values)) for name, values in rates.items()}
        rows.append({"precision": precision, "batch": batch, **row, "ours_to_llama": round(ratio, 3)})
        print(rows[-1], flush=True)
    if arguments.out:
        machine = {"machine": processor_name(), "torch": torch.__version__}
        machine |= {"transformers": transformers.__version__, "python": platform.python_version()}
        machine |= {"threads": torch.get_num_threads(), "size": arguments.size, "rounds": arguments.rounds}
        write_json(arguments.out, {**machine, "rows": rows})


if __name__ == "__main__":
    main()
