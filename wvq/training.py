"""The one training loop of both stages, over Accelerate: one process or many machines, with exact resume.

The loop counts pictures. Everything that a step draws (data order, augmentation, dropout, projections) is a function of
the seed and the number of pictures seen, so a resumed run repeats the uninterrupted one. Without dropout the number of
processes changes the order of summation only; dropout masks are drawn by each process for itself.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from wvq.errors import CheckpointError, ConfigError, WVQError, from_worker
from wvq.optimization import learning_rate_factor
from wvq.recipes import TrainConfig
from wvq.tracking import RunLog, truncate_log
from wvq.unreadable import DrawnPictures

CHECKPOINTS = "checkpoints"
_SHOWN = {"U": "utilization", "C": "perplexity"}  # of the batch, beside the loss in the progress bar


class Task(Protocol):
    """What a stage brings to the loop."""

    name: str

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        """Optimiser groups, made by :func:`wvq.optimization.parameter_group`."""

    def loss(self, model: nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean loss of a batch and its detached figures; ``model`` may be wrapped, so call only its forward."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Held-out figures, the same on every process."""

    def picture(self, model: nn.Module) -> Image.Image:
        """A sheet that shows what the model can do."""

    def training_state(self, model: nn.Module) -> dict: ...

    def load_training_state(self, model: nn.Module, state: dict, device: torch.device) -> None: ...


class RunSampler(Sampler):
    """Endless (position, index) pairs of one process: its share of each global batch, from ``start`` pictures on.

    ``position`` counts the pictures of the whole run; each pass over the data has its own permutation.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        share = self.batch_size // self.world
        epoch, order = -1, None
        for first in range(self.start, 2**62, self.batch_size):
            for position in range(first + self.rank * share, first + (self.rank + 1) * share):
                if position // self.length != epoch:
                    epoch = position // self.length
                    generator = torch.Generator().manual_seed(self.seed * 2**31 + epoch)
                    order = torch.randperm(self.length, generator=generator).tolist()
                yield position, order[position % self.length]


class ExponentialAverage:
    """Exponential moving average of the parameters; buffers are copied. The decay grows from 0 over the first steps."""

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)
        self.updates += 1

    def state_dict(self) -> dict:
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])


class Trainer:
    """Trains one model on one data set.

    Args:
        task: what is trained, and how it is measured.
        model: the model, on any device.
        train_set: items as dicts of tensors; indexed by (position, index) pairs.
        config: the loop's settings.
        folder: where logs, pictures and checkpoints go.
        accelerator: made by :func:`build_accelerator`.

    Raises:
        ConfigError: a setting is out of range or does not fit the number of processes.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        train_set: Dataset,
        config: TrainConfig,
        folder: Path,
        accelerator: Accelerator,
    ):
        config.check()
        parts = accelerator.num_processes * config.gradient_accumulation_steps
        if config.batch_size % parts:
            raise ConfigError(
                f"train.batch_size {config.batch_size} must be a multiple of processes x "
                f"train.gradient_accumulation_steps = {parts}"
            )
        self.task, self.config, self.folder, self.accelerator = task, config, Path(folder), accelerator
        self.train_set, self.unreadable = train_set, DrawnPictures(train_set)
        self.micro_batch = config.batch_size // parts
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        groups = task.parameter_groups(model)
        # Fused: one kernel a step, and a step with non-finite gradients is skipped on the device, without a host sync.
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = ExponentialAverage(self.raw_model, config.ema_decay) if config.ema_decay else None
        self.images_seen, self.elapsed, self._last_step_at = 0, 0.0, None
        self.skipped = torch.zeros((), device=accelerator.device)
        accelerator.register_for_checkpointing(self)

    @property
    def raw_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    @property
    def averaged_model(self) -> nn.Module:
        """The weights to evaluate and keep: the moving average where there is one."""
        return self.ema.model if self.ema else self.raw_model

    # ---- the loop

    def run(self, resume: bool = False) -> dict:
        """Train to the end (or to the wall clock's), evaluate, and return the last figures.

        Returns:
            The held-out figures, with ``images``, ``seconds``, ``images_per_second``, ``skipped_steps``,
            ``cut_short`` (True if the clock and not the number of pictures ended the run) and, where pictures are
            decoded, ``unreadable_pictures``: training pictures asked for that could not be read.
        """
        config, accelerator = self.config, self.accelerator
        if resume:
            self.load_latest()
        log = RunLog(self.folder, self.images_seen) if accelerator.is_main_process else None
        bar = tqdm(total=config.images, initial=self.images_seen, unit="img", disable=log is None, desc=self.task.name)
        batches = self._watched(iter(self._loader()))
        self._last_step_at = time.perf_counter()
        window, figures, evaluated_at = _Window(), {}, -1
        while self.images_seen < config.images and not self._out_of_time():
            window.add(self._step(batches))
            bar.update(min(config.batch_size, config.images - bar.n))
            if self._due(config.log_every):
                self._log_training(log, bar, window.collect(accelerator))
            if config.evaluate_every and self._due(config.evaluate_every):
                figures, evaluated_at = self._evaluate(log, bar), self.images_seen
            if config.save_every and self._due(config.save_every):
                self.save()
        if config.save_every:
            self.save()  # a run that the clock cut short can go on from here
        if evaluated_at != self.images_seen:
            figures = self._evaluate(log, bar)
        bar.close()
        if log:
            log.close()
        self.unreadable.merge()
        return figures | {
            "images": self.images_seen,
            "seconds": round(self.elapsed, 1),
            "images_per_second": round(self.images_seen / max(self.elapsed, 1e-9), 1),
            "skipped_steps": int(self.skipped),
            "cut_short": self.images_seen < config.images,
            **self.unreadable.report(),
        }

    def _watched(self, batches: Iterator[dict]) -> Iterator[dict]:
        """The same batches, with an eye on pictures that were replaced."""
        try:
            for batch in batches:
                self.unreadable.observe(batch)
                yield batch
        except WVQError as error:
            raise from_worker(error) from None

    def _loader(self) -> DataLoader:
        accelerator, config = self.accelerator, self.config
        sampler = RunSampler(
            len(self.train_set),
            config.batch_size,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
            self.images_seen,
        )
        return DataLoader(
            self.train_set,
            self.micro_batch,
            sampler=sampler,
            num_workers=config.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=config.num_workers > 0,
        )

    def _step(self, batches: Iterator[dict]) -> dict[str, torch.Tensor]:
        """One optimiser step; returns detached figures that stay on the device."""
        config, accelerator = self.config, self.accelerator
        self.model.train()
        torch.manual_seed(config.seed + self.images_seen + accelerator.process_index)
        figures: dict[str, torch.Tensor] = {}
        for _ in range(config.gradient_accumulation_steps):
            batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in next(batches).items()}
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    loss, terms = self.task.loss(self.model, batch)
                accelerator.backward(loss)
            for name, value in {"loss": loss.detach(), **terms}.items():
                figures[name] = figures.get(name, 0) + value / config.gradient_accumulation_steps
        figures |= self._update()
        self.images_seen += config.batch_size
        now = time.perf_counter()
        self.elapsed, self._last_step_at = self.elapsed + now - self._last_step_at, now
        return figures

    def _update(self) -> dict[str, torch.Tensor]:
        """Clip each group, step, average; skips the step on the device if a gradient is not finite."""
        config = self.config
        factor = learning_rate_factor(config, self.progress, self.images_seen)
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        clipped: dict[str, list[nn.Parameter]] = {}
        for group in self.optimizer.param_groups:
            if group["scheduled"]:
                group["lr"] = group["peak_lr"] * factor
            clipped.setdefault(group["clip"], []).extend(group["params"])
        figures, finite = {}, torch.ones((), device=self.accelerator.device)
        for name, params in clipped.items():
            norm = nn.utils.clip_grad_norm_(params, config.clip_norm or math.inf, foreach=True)
            finite = finite * torch.isfinite(norm)
            figures[f"gradient_norm_{name}"] = norm.detach()
        if self.accelerator.scaler is None:
            self.optimizer.optimizer.found_inf = 1 - finite
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += 1 - finite
        if self.ema:
            self.ema.update(self.raw_model)
        return figures

    @property
    def progress(self) -> float:
        """Share of the run that is over, by pictures or by clock, whichever is further; in [0, 1]."""
        clock = self.elapsed / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(self.images_seen / self.config.images, clock))

    def _out_of_time(self) -> bool:
        if self.config.max_minutes is None:
            return False
        if self.accelerator.num_processes > 1:  # clocks differ: all ranks follow the first one's, or they would part
            self.elapsed = broadcast_object_list([self.elapsed])[0]
        return self.elapsed >= 60 * self.config.max_minutes

    def _due(self, interval: int) -> bool:
        return self.images_seen // interval > (self.images_seen - self.config.batch_size) // interval

    # ---- what the user sees

    def _log_training(self, log: RunLog | None, bar: tqdm, figures: dict[str, float]) -> None:
        rate = self.images_seen / max(self.elapsed, 1e-9)
        row = {**figures, "seconds": round(self.elapsed, 2), "images_per_second": round(rate, 1)}
        row |= {f"learning_rate_{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        row["skipped_steps"] = int(self.skipped)
        shown = {"loss": f"{figures['loss']:.3f}"}
        shown |= {short: f"{figures[name]:.3g}" for short, name in _SHOWN.items() if name in figures}
        bar.set_postfix(shown)
        if log:
            log.row("train", self.images_seen, row)

    def _evaluate(self, log: RunLog | None, bar: tqdm) -> dict[str, float]:
        model = self.averaged_model.eval()
        figures = self.task.evaluate(model, self.accelerator)
        if log:
            log.picture("held_out", self.images_seen, self.task.picture(model))
            log.row("validation", self.images_seen, figures)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float))
            bar.write(f"{self.task.name}, held out after {self.images_seen:,} images: {shown}")
        self.accelerator.wait_for_everyone()
        self._last_step_at = time.perf_counter()  # evaluation does not count as training time
        return figures

    # ---- checkpoints

    def state_dict(self) -> dict:
        return {
            "images_seen": self.images_seen,
            "elapsed": self.elapsed,
            "skipped": self.skipped.cpu(),
            "ema": self.ema.state_dict() if self.ema else None,
            "task": self.task.training_state(self.raw_model),
            "unreadable": self.unreadable.found,
        }

    def load_state_dict(self, state: dict) -> None:
        self.images_seen, self.elapsed = state["images_seen"], state["elapsed"]
        self.skipped = state["skipped"].to(self.accelerator.device)
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        self.task.load_training_state(self.raw_model, state["task"], self.accelerator.device)
        self.unreadable.found |= state.get("unreadable", {})

    def save(self) -> Path:
        """Write a checkpoint into a temporary folder and rename it when complete; keep the last few."""
        root = self.folder / CHECKPOINTS
        if (root / f"{self.images_seen:012d}").exists():
            return root / f"{self.images_seen:012d}"
        target, partial = root / f"{self.images_seen:012d}", root / f"{self.images_seen:012d}.partial"
        if self.accelerator.is_main_process:
            for stale in root.glob("*.partial"):
                shutil.rmtree(stale)
        self.accelerator.wait_for_everyone()
        self.unreadable.merge()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            partial.rename(target)
            for old in find_checkpoints(self.folder)[: -self.config.keep_checkpoints]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        self._last_step_at = time.perf_counter()  # saving does not count as training time
        return target

    def load_latest(self) -> None:
        """Continue from the newest complete checkpoint.

        Raises:
            CheckpointError: the folder holds none.
        """
        found = find_checkpoints(self.folder)
        if not found:
            raise CheckpointError(
                f"{self.folder / CHECKPOINTS} holds no complete checkpoint to resume from; remove "
                f"{self.folder.parent} and start again"
            )
        self.accelerator.load_state(str(found[-1]))
        if self.accelerator.is_main_process:
            truncate_log(self.folder, self.images_seen)


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    root = Path(folder) / CHECKPOINTS
    return sorted(path for path in root.glob("*") if path.is_dir() and path.name.isdigit()) if root.is_dir() else []


def build_accelerator(config: TrainConfig) -> Accelerator:
    """The Accelerator of a run; device and number of processes come from the launcher."""
    # A plugin, because the launcher's environment (1, if not told) would override a plain number of steps.
    accumulation = GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False)
    return Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_plugin=accumulation)


class _Window:
    """Means of detached figures between two log lines; read out once, so that the loop never waits for a GPU."""

    def __init__(self):
        self.sums, self.count = {}, 0

    def add(self, figures: dict[str, torch.Tensor]) -> None:
        self.sums = {name: self.sums.get(name, 0) + value for name, value in figures.items()}
        self.count += 1

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the steps and processes since the last call."""
        values = torch.stack([value.float() for value in self.sums.values()]) / self.count
        means = dict(zip(self.sums, accelerator.reduce(values, "mean").tolist(), strict=True))
        self.sums, self.count = {}, 0
        return means
