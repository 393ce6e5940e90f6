"""The one training loop of both stages, over Accelerate: one process or many machines, with exact resume.

The loop counts pictures. Everything that a step draws (data order, augmentation, dropout, projections) is a function of
the seed and the number of pictures seen, so a resumed run repeats the uninterrupted one. Without dropout the number of
processes changes the order of summation only; dropout masks are drawn by each process for itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from wvq.data.unreadable import DrawnPictures
from wvq.distributed import decided_by_first_process, wait_for_all
from wvq.errors import ConfigError, WVQError, from_worker
from wvq.files.user_folders import keep_torch_code_private
from wvq.interruption import (
    PassInterrupted,
    RunInterrupted,
    StopAgreement,
    StopRequest,
    end_with_parent_only,
    stop_on_signal,
)
from wvq.settings.train import TrainConfig
from wvq.training.acceleration import enable_checkpointing
from wvq.training.averaging import ExponentialAverage
from wvq.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from wvq.training.optimization import build_optimizer, clip_groups, set_learning_rates
from wvq.training.order import RunSampler
from wvq.training.sharding import ShardedModel, skeleton
from wvq.training.task import RunningMeans, Task
from wvq.training.tracking import RunLog, truncate_log

_SHOWN = {"U": "utilization", "C": "perplexity"}  # of the batch, beside the loss in the progress bar


class Trainer:
    """Trains one model, and the adversary of its task if there is one, on one data set.

    Args:
        task: what is trained, and how it is measured.
        model: the model, on any device.
        train_set: items as dicts of tensors; indexed by (position, index) pairs.
        config: the loop's settings.
        folder: where logs, pictures and checkpoints go.
        accelerator: made by :func:`wvq.training.acceleration.build_accelerator`.

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
        if config.gradient_checkpointing:
            enable_checkpointing(model)
        optimizer = build_optimizer(task.parameter_groups(model), config.learning_rate, (config.beta1, config.beta2))
        structure = skeleton(model) if accelerator.is_fsdp2 else None
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.optimizers = {"": self.optimizer}
        self.adversary = None
        if task.adversary is not None:
            self._prepare_adversary(task.adversary)
        if structure is not None:
            self.ema = ShardedModel(structure, self.raw_model, config.ema_decay, accelerator.device)
        else:
            self.ema = ExponentialAverage(self.raw_model, config.ema_decay) if config.ema_decay else None
        if config.compile:
            keep_torch_code_private()
            for part in task.compiled_parts(self.raw_model):
                part.compile()
        self.images_seen, self.elapsed, self._last_step_at = 0, 0.0, None
        self.decay_start = 0.0  # progress when the rate was first at its peak, and began to decay
        self.skipped = {name: torch.zeros((), device=accelerator.device) for name in self.optimizers}
        self.warnings: list[str] = []
        self.window = RunningMeans()
        self.evaluating = False

    def _prepare_adversary(self, adversary: nn.Module) -> None:
        if self.config.channels_last:
            adversary = adversary.to(memory_format=torch.channels_last)
        groups = self.task.adversary_groups()
        optimizer = build_optimizer(groups, groups[0]["lr"], groups[0]["betas"])
        self.adversary, self.optimizers["discriminator"] = self.accelerator.prepare(adversary, optimizer)

    @property
    def raw_model(self) -> nn.Module:
        """The model itself, behind what wraps it for several processes or a compiler."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def averaged_model(self) -> nn.Module:
        """The weights to evaluate and keep: the moving average where there is one. All processes ask together.

        Of a sharded model this is a whole one on each device: let go of it soon.
        """
        return self.ema.model if self.ema else self.raw_model

    @property
    def model_to_save(self) -> nn.Module | None:
        """The averaged model in the first process, None in the others. All processes ask together."""
        if isinstance(self.ema, ShardedModel):
            return self.ema.model_of_first_process
        return self.averaged_model if self.accelerator.is_main_process else None

    # ---- the loop

    def run(self, resume: bool = False) -> dict:
        """Train to the end (or to the wall clock's), evaluate, and return the last figures.

        Returns:
            The held-out figures, with ``images``, ``seconds``, ``images_per_second``, ``skipped_steps``, ``cut_short``
            (True if the clock and not the number of pictures ended the run), ``warnings`` and, where pictures are
            decoded, ``unreadable_pictures``: training pictures asked for that could not be read.

        Raises:
            RunInterrupted: SIGTERM or Ctrl-C came; a checkpoint was saved. Several processes stop together, a few
                seconds later.
            CheckpointError: there is nothing to resume, or a checkpoint could not be written.
        """
        if resume:
            self.load_latest()
        log = RunLog(self.folder, self.images_seen) if self.accelerator.is_main_process else None
        try:
            with stop_on_signal() as request:
                try:
                    figures = self._run(log, request)
                except PassInterrupted as stop:
                    self._stop(stop.signal)
        finally:
            if log:
                log.close()
        self.unreadable.merge()
        return figures | {
            "images": self.images_seen,
            "seconds": round(self.elapsed, 1),
            "images_per_second": round(self.images_seen / max(self.elapsed, 1e-9), 1),
            **self._skipped_steps(),
            "cut_short": self.images_seen < self.config.images,
            "warnings": self.warnings,
            **self.unreadable.report(),
        }

    def _run(self, log: RunLog | None, request: StopRequest) -> dict:
        config = self.config
        bar = tqdm(total=config.images, initial=self.images_seen, unit="img", disable=log is None, desc=self.task.name)
        batches = self._watched(iter(self._loader()))
        self._last_step_at = time.perf_counter()
        self.task.stop, agreement = request, StopAgreement(request)
        figures, evaluated_at = {}, -1
        with bar:
            if self.evaluating:  # the run that goes on here was stopped in an evaluation
                figures, evaluated_at = self._evaluate(log, bar), self.images_seen
            while self.images_seen < config.images and not self._out_of_time():
                self.window.add(self._step(batches))
                bar.update(min(config.batch_size, config.images - bar.n))
                if self._due(config.log_every):
                    self._log_training(log, bar, self.window.collect(self.accelerator))
                if config.evaluate_every and self._due(config.evaluate_every):
                    figures, evaluated_at = self._evaluate(log, bar), self.images_seen
                if config.save_every and self._due(config.save_every):
                    self.save()
                if number := agreement.after_step():
                    self._stop(number)
            if number := agreement.settle():
                self._stop(number)
            if config.save_every:
                self.save()  # a run that the clock cut short can go on from here
            if evaluated_at != self.images_seen:
                figures = self._evaluate(log, bar)
        return figures

    def _stop(self, number: int) -> NoReturn:
        saved = self.save()
        raise RunInterrupted(f"stopped by {signal.Signals(number).name}; checkpoint saved in {saved}", number)

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
            collate_fn=getattr(self.train_set, "collate_fn", None),  # a set that makes whole batches itself
            num_workers=config.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=end_with_parent_only,
        )

    def _step(self, batches: Iterator[dict]) -> dict[str, torch.Tensor]:
        """One step of every optimiser whose turn it is; returns detached figures that stay on the device."""
        config, accelerator = self.config, self.accelerator
        modules = [module for module in (self.model, self.adversary) if module is not None]
        for module in modules:
            module.train()
        torch.manual_seed(config.seed + self.images_seen + accelerator.process_index)
        figures: dict[str, torch.Tensor] = {}
        turns = [""]
        self.task.begin_step(self.raw_model, config.gradient_accumulation_steps)
        for _ in range(config.gradient_accumulation_steps):
            batch = {k: self._moved(v) for k, v in next(batches).items()}
            with accelerator.accumulate(*modules):
                with accelerator.autocast():
                    step = self.task.loss(self.model, batch, self.images_seen, self.progress)
                accelerator.backward(step.loss)
                found = {"loss": step.loss.detach(), **step.terms}
                if step.adversary_loss is not None:
                    with accelerator.autocast():
                        loss, terms = step.adversary_loss(self.adversary)
                    accelerator.backward(loss)
                    found |= {"discriminator_loss": loss.detach(), **terms}
                    turns = ["", "discriminator"]
            for name, value in found.items():
                figures[name] = figures.get(name, 0) + value / config.gradient_accumulation_steps
        figures |= self._update(turns)
        self.images_seen += config.batch_size
        now = time.perf_counter()
        self.elapsed, self._last_step_at = self.elapsed + now - self._last_step_at, now
        return figures

    def _moved(self, value: torch.Tensor | list) -> torch.Tensor | list:
        """A part of a batch on the device; texts have no place there."""
        return value.to(self.accelerator.device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    def _update(self, turns: list[str]) -> dict[str, torch.Tensor]:
        """Clip each group and step; an optimiser with a gradient that is not finite is skipped on the device."""
        scaler, figures = self.accelerator.scaler, {}
        if self.images_seen < self.config.warmup_images:
            self.decay_start = self.progress
        # Accelerate's own step would update the shared scaler once an optimiser, between unscaling and stepping.
        optimizers = {name: self.optimizers[name].optimizer for name in turns}
        for name, optimizer in optimizers.items():
            if scaler is not None:
                scaler.unscale_(optimizer)
            set_learning_rates(optimizer, self.config, self.decay_progress, self.images_seen)
            norms = clip_groups(optimizer, self.config.clip_norm)
            figures |= {f"gradient_norm_{group}": norm for group, norm in norms.items()}
            finite = torch.stack([torch.isfinite(norm) for norm in norms.values()]).all().float()
            self.skipped[name] += 1 - finite
            if scaler is not None:
                scaler.step(optimizer)
            else:
                optimizer.found_inf = 1 - finite  # read by the fused kernel: no host sync
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()
        if self.ema:
            self.ema.update(self.raw_model)
        return figures

    @property
    def progress(self) -> float:
        """Share of the run that is over, by pictures or by clock, whichever is further; in [0, 1]."""
        clock = self.elapsed / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(self.images_seen / self.config.images, clock))

    @property
    def decay_progress(self) -> float:
        """Share of what comes after the warm-up that is over; 0 in the warm-up, 1 at the end of the run."""
        return (self.progress - self.decay_start) / max(1 - self.decay_start, 1e-9)

    def _out_of_time(self) -> bool:
        if self.config.max_minutes is None:
            return False
        if self.accelerator.num_processes > 1:  # clocks differ: all ranks follow the first one's, or they would part
            self.elapsed = broadcast_object_list([self.elapsed])[0]
        return self.elapsed >= 60 * self.config.max_minutes

    def _due(self, interval: int) -> bool:
        return self.images_seen // interval > (self.images_seen - self.config.batch_size) // interval

    # ---- what the user sees

    def _skipped_steps(self) -> dict[str, int]:
        return {f"skipped_{name}_steps" if name else "skipped_steps": int(n) for name, n in self.skipped.items()}

    def _log_training(self, log: RunLog | None, bar: tqdm, figures: dict[str, float]) -> None:
        rate = self.images_seen / max(self.elapsed, 1e-9)
        more, warning = self.task.report(self.accelerator, self.images_seen)
        row = {**figures, **more, "seconds": round(self.elapsed, 2), "images_per_second": round(rate, 1)}
        for optimizer in self.optimizers.values():
            row |= {f"learning_rate_{group['name']}": group["lr"] for group in optimizer.param_groups}
        row |= self._skipped_steps()
        shown = {"loss": f"{figures['loss']:.3f}"}
        shown |= {short: f"{figures[name]:.3g}" for short, name in _SHOWN.items() if name in figures}
        bar.set_postfix(shown)
        if warning:
            self.warnings.append(warning)
        if log:
            if warning:
                bar.write(f"warning: {warning}")
            log.row("train", self.images_seen, row)

    def _evaluate(self, log: RunLog | None, bar: tqdm) -> dict[str, float]:
        self.evaluating = True
        model = self.averaged_model.eval()
        figures = self.task.evaluate(model, self.accelerator)
        if log:
            log.picture("held_out", self.images_seen, self.task.picture(model))
            log.row("validation", self.images_seen, figures)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float))
            bar.write(f"{self.task.name}, held out after {self.images_seen:,} images: {shown}")
        wait_for_all()
        self.evaluating = False
        self._last_step_at = time.perf_counter()  # evaluation does not count as training time
        return figures

    # ---- checkpoints

    def state_dict(self) -> dict:
        """What an exact resume needs beside weights and optimisers. All processes ask together."""
        return {
            "images_seen": self.images_seen,
            "elapsed": self.elapsed,
            "decay_start": self.decay_start,
            "skipped": {name: count.cpu() for name, count in self.skipped.items()},
            "warnings": self.warnings,
            "ema": self.ema.state_dict() if self.ema else None,
            "task": self.task.training_state(self.raw_model),
            "unreadable": self.unreadable.found,
            "window": self.window.state_dict(),
            "evaluating": self.evaluating,
        }

    def load_state_dict(self, state: dict) -> None:
        """Take up the state that :meth:`state_dict` gave."""
        device = self.accelerator.device
        self.images_seen, self.elapsed, self.warnings = state["images_seen"], state["elapsed"], state["warnings"]
        self.decay_start = state.get("decay_start", 0.0)  # before there was one, rates decayed from the start
        self.skipped = {name: count.to(device) for name, count in state["skipped"].items()}
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        self.task.load_training_state(self.raw_model, state["task"], device)
        self.unreadable.found |= state["unreadable"]
        if "window" in state:  # not in older checkpoints
            self.window.load_state_dict(state["window"], device)
            self.evaluating = state["evaluating"]

    def save(self) -> Path:
        """Write a checkpoint; see :func:`wvq.training.checkpoints.save_checkpoint`."""
        self.unreadable.merge()
        target = save_checkpoint(self.accelerator, self, self.folder, self.images_seen, self.config.keep_checkpoints)
        self._last_step_at = time.perf_counter()  # saving does not count as training time
        return target

    def load_latest(self) -> None:
        """Continue from the newest complete checkpoint.

        Raises:
            CheckpointError: the folder holds none, or a damaged one.
        """
        load_checkpoint(self.accelerator, self, decided_by_first_process(lambda: latest_checkpoint(self.folder)))
        if self.accelerator.is_main_process:
            truncate_log(self.folder, self.images_seen)
