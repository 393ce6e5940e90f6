"""Training steps and throughput of the tokenizer, compared with a plain loop over the same network.

    python -m benchmarks.training [--rounds 15] [--out docs/results/training_speed.json]

plain: what one would write by hand: batches from a DataLoader, forward, loss, backward, clipping, a fused AdamW step.
ours: a step of the Trainer with the same settings, which also checks gradients, counts code use and keeps figures for
the log. "+ average" adds a moving average of the weights to both. "gan" adds a PatchGAN with an adaptive weight; the
plain loop then does as Esser et al. 2021. In each round every case runs once, for some steps, so that a change of the
machine's speed affects all of them; rates are medians over rounds, and ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from wvq.files.atomic import write_json
from wvq.hardware import processor_name
from wvq.tokenizer.adversarial import Adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import DiscriminatorConfig, LossConfig, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask
from wvq.training.acceleration import build_accelerator
from wvq.training.order import RunSampler
from wvq.training.trainer import Trainer

# The network of the quick start, and one of the usual kind at 64 x 64.
NETWORKS = {
    "small_32": {"image_size": 32, "patch_size": 2, "base_channels": 32, "channel_multipliers": [1, 2.5]}
    | {"num_res_blocks": 1, "attention": False},
    "vqvae_64": {"image_size": 64, "base_channels": 32, "channel_multipliers": [1, 1, 2, 2]},
}
BATCH = 16
CODES = {"num_codes": 8_192, "code_dim": 8, "quantizer": "sliced"}
GAN = {"network": "patchgan", "base_channels": 32, "num_layers": 2, "lecam_weight": 0.001}


class Noise(Dataset):
    """Pictures of noise."""

    def __init__(self, size: int, length: int = 256):
        self.pictures = torch.rand(length, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        return {"pixel_values": self.pictures[key[1]]}


def build_model(network: dict) -> WassersteinVQModel:
    """A tokenizer with this network."""
    torch.manual_seed(0)
    return WassersteinVQModel(WassersteinVQConfig(**network, **CODES))


def trainer_step(task: TokenizerTask, model: WassersteinVQModel, size: int, folder: Path) -> Callable[[], None]:
    """A step of the Trainer over noise of ``size`` pixels."""
    trainer = Trainer(task, model, Noise(size), task.config, folder, build_accelerator(task.config))
    batches = iter(trainer._loader())
    trainer.progress.start_clock()
    return lambda: trainer._step(batches)


def build_step(network: dict, gan: bool, average: bool, folder: Path) -> Callable[[], None]:
    """A step of the Trainer with these parts."""
    config = TokenizerTrainConfig(batch_size=BATCH, ema_decay=0.999 if average else 0.0, codebook_learning_rate=0.02)
    adversary = Adversary(DiscriminatorConfig(**GAN)) if gan else None
    task = TokenizerTask(ReconstructionLoss(LossConfig()), None, config, adversary)
    return trainer_step(task, build_model(network), network["image_size"], folder)


def plain(network: dict, gan: bool, average: bool) -> Callable[[], None]:
    """A step of the plain loop with the same parts."""
    model = build_model(network).train()
    codebook = model.codebook_parameters()
    rest = [p for p in model.parameters() if p.requires_grad and all(p is not c for c in codebook)]
    groups = [{"params": rest, "lr": 1e-4}, {"params": codebook, "lr": 0.02}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    data = Noise(network["image_size"])
    batches = iter(DataLoader(data, BATCH, sampler=RunSampler(len(data), BATCH, 0)))
    mean = copy.deepcopy(model).requires_grad_(False) if average else None
    judge = Adversary(DiscriminatorConfig(**GAN)) if gan else None
    judge_optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-4, betas=(0.5, 0.9), fused=True) if gan else None

    def step() -> None:
        pictures = next(batches)["pixel_values"]
        output = model(pictures, update_statistics=True)
        loss = F.mse_loss(output.reconstruction, pictures)
        if judge is not None:
            verdict = judge.generator_loss(output.reconstruction)
            last = model.last_layer
            (of_loss,) = torch.autograd.grad(loss, last, retain_graph=True)
            (of_verdict,) = torch.autograd.grad(verdict, last, retain_graph=True)
            ratio = (of_loss.norm() / (of_verdict.norm() + 1e-4)).clamp(0, 1e4).detach()
            loss = loss + 0.5 * ratio * verdict
        (loss + output.quantizer_loss).backward()
        for group in groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if judge is not None:
            judge_optimizer.zero_grad(set_to_none=True)  # the generator's loss has left gradients there
            judge_loss, _ = judge(pictures, output.reconstruction.detach())
            judge_loss.backward()
            nn.utils.clip_grad_norm_(judge.parameters(), 1.0, foreach=True)
            judge_optimizer.step()
        if mean is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 0.001)

    return step


def rate(step: Callable[[], None], steps: int, pictures: int = BATCH) -> float:
    """Pictures a second over some steps."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * pictures / (time.perf_counter() - start)


def compare(
    cases: dict[str, Callable[[], None]], rounds: int, steps: int, pictures: int = BATCH
) -> dict[str, list[float]]:
    """Pictures a second of each case in each round; a step takes ``pictures``."""
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for step in cases.values():
        rate(step, 2)
    for number in range(rounds):
        order = list(cases) if number % 2 else list(cases)[::-1]
        for name in order:
            rates[name].append(rate(cases[name], steps, pictures))
    return rates


def throughput(network: dict) -> dict[str, Callable[[], None]]:
    """Encoding and decoding a batch."""
    model = build_model(network).eval()
    pictures = torch.rand(BATCH, 3, network["image_size"], network["image_size"]) * 2 - 1
    with torch.inference_mode():
        codes = model.encode(pictures).codes

    def encode() -> None:
        with torch.inference_mode():
            model.encode(pictures)

    def decode() -> None:
        with torch.inference_mode():
            model.decode_codes(codes)

    return {"encode": encode, "decode": decode}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, network in NETWORKS.items():
            for gan, average in ((False, False), (False, True), (True, True)):
                kind = ("gan" if gan else "vqvae") + (" + average" if average else "")
                cases = {"ours": build_step(network, gan, average, Path(folder)), "plain": plain(network, gan, average)}
                rates = compare(cases, arguments.rounds, arguments.steps)
                ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["plain"], strict=True))
                row = {case: round(statistics.median(values), 1) for case, values in rates.items()}
                rows.append({"network": name, "step": kind, **row, "ratio": round(ratio, 3)})
                print(f"{name:<10}{kind:<18} ours {row['ours']:>7}/s  plain {row['plain']:>7}/s  ratio {ratio:.3f}")
            rates = compare(throughput(network), arguments.rounds, arguments.steps)
            row = {case: round(statistics.median(values), 1) for case, values in rates.items()}
            rows.append({"network": name, **row})
            print(f"{name:<10}{'':<18} encode {row['encode']}/s  decode {row['decode']}/s", flush=True)
    if arguments.out:
        machine = {"machine": processor_name(), "torch": torch.__version__}
        machine |= {"python": platform.python_version(), "threads": torch.get_num_threads()}
        write_json(arguments.out, {**machine, "batch": BATCH, "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
