"""The one training loop of both stages, over Accelerate: one process or many machines, with exact resume.

The loop counts pictures. Everything that a step draws (data order, augmentation, dropout, projections) is a function of
the seed and the number of pictures seen, so a resumed run repeats the uninterrupted one. Without dropout the number of
processes changes the order of summation only; dropout masks are drawn by each process for itself.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NoReturn

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from wvq.data.stream import StreamedImages
from wvq.data.unreadable import DrawnPictures
from wvq.distributed import decided_by_first_process, is_main_process, wait_for_all
from wvq.errors import ConfigError, WVQError, first_line, from_worker
from wvq.interruption import (
    PassInterrupted,
    RunInterrupted,
    StopAgreement,
    StopRequest,
    end_with_parent_only,
    stop_on_signal,
)
from wvq.settings.train import TrainConfig
from wvq.training.acceleration import compile_failure, enable_checkpointing
from wvq.training.averaging import ExponentialAverage, Model
from wvq.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from wvq.training.optimization import ModuleOptimizer, build_optimizer
from wvq.training.order import RunSampler
from wvq.training.progress import Progress
from wvq.training.sharding import ShardedModel, skeleton
from wvq.training.stream_order import StreamOrder
from wvq.training.task import Batch, RunningMeans, Task
from wvq.training.tracking import RunLog, truncate_log

FIT_INTO_MEMORY = "raise train.gradient_accumulation_steps, set train.gradient_checkpointing, or take a smaller model"
_SHOWN = {"U": "utilization", "C": "perplexity"}  # of the batch, beside the loss in the progress bar


class Trainer(Generic[Model]):
    """Trains one model, and the adversary of its task if there is one, on one data set.

    Args:
        task: what is trained, and how it is measured.
        model: the model, on any device.
        train_set: items as dicts of tensors; indexed by (position, index) pairs.
        config: the loop's settings.
        folder: where logs, pictures and checkpoints go.
        accelerator: made by :func:`wvq.training.acceleration.build_accelerator`.

    Attributes:
        optimizers: that of the model, then that of the adversary.
        raw_model: the model itself, behind what wraps it for several processes.

    Raises:
        ConfigError: a setting is out of range or does not fit the number of processes.
    """

    def __init__(
        self,
        task: Task[Model],
        model: Model,
        train_set: Dataset[Any],
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
        self.stream: StreamOrder | None = None
        if isinstance(train_set, StreamedImages):
            rank, world = accelerator.process_index, accelerator.num_processes
            self.stream = StreamOrder(train_set, config.batch_size, self.micro_batch, config.seed, rank, world)
        if config.channels_last:
            for module in (model, task.adversary):
                if module is not None:
                    module.to(memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            enable_checkpointing(model)
        structure = skeleton(model) if accelerator.is_fsdp2 else None
        self.optimizers = [self._optimized(model, task.parameter_groups(model), "skipped_steps")]
        if task.adversary is not None:
            self.optimizers.append(
                self._optimized(task.adversary, task.adversary_groups(), "skipped_discriminator_steps")
            )
        self.raw_model: Model = accelerator.unwrap_model(self.model)
        self.ema: ShardedModel[Model] | ExponentialAverage[Model] | None = None
        if structure is not None:
            self.ema = ShardedModel(structure, self.raw_model, config.ema_decay, accelerator.device)
        elif config.ema_decay:
            self.ema = ExponentialAverage(self.raw_model, config.ema_decay)
        self.progress = Progress(config)
        self.warnings: list[str] = []
        if config.compile:
            self._compile()
        self.window = RunningMeans()
        self.evaluating = False

    def _optimized(self, module: nn.Module, groups: list[dict[str, Any]], skipped_name: str) -> ModuleOptimizer:
        prepared, optimizer = self.accelerator.prepare(module, build_optimizer(groups))
        return ModuleOptimizer(prepared, optimizer.optimizer, self.config, skipped_name)

    def _compile(self) -> None:
        failure = compile_failure(self.accelerator.device)
        if failure is not None:
            self.warnings.append(f"train.compile: torch.compile fails here ({failure}); training goes on without it")
            if is_main_process():
                warnings.warn(self.warnings[-1], stacklevel=2)
            return
        for part in self.task.compiled_parts(self.raw_model):
            part.compile()

    @property
    def model(self) -> nn.Module:
        """The model as it trains: wrapped, if several processes train it."""
        return self.optimizers[0].module

    @property
    def averaged_model(self) -> Model:
        """The weights to evaluate and keep: the moving average where there is one. All processes request it together.

        Of a sharded model this is a whole one on each device: drop it soon.
        """
        return self.ema.model if self.ema else self.raw_model

    @property
    def model_to_save(self) -> Model | None:
        """The averaged model in the main process, None in the others. All processes request it together."""
        if isinstance(self.ema, ShardedModel):
            return self.ema.model_of_main_process
        return self.averaged_model if is_main_process() else None

    # ---- the loop

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Train until the pictures or the time are used up, evaluate, and return the last figures.

        Returns:
            The held-out figures, with ``images``, ``seconds``, ``images_per_second``, ``skipped_steps``, ``cut_short``
            (True if the clock and not the number of pictures ended the run), ``warnings`` and, where pictures are
            decoded, ``unreadable_pictures``: training pictures that were requested and could not be read.

        Raises:
            RunInterrupted: SIGTERM or Ctrl-C came; a checkpoint was saved. Several processes stop together, a few
                seconds later.
            ConfigError: the memory of the GPU is too small.
            CheckpointError: there is nothing to resume, or a checkpoint could not be written.
        """
        if resume:
            self.load_latest()
        log = RunLog(self.folder, self.progress.images_seen) if is_main_process() else None
        try:
            with stop_on_signal() as request:
                try:
                    figures = self._run(log, request)
                except PassInterrupted as stop:
                    self._stop(stop.signal)
                except torch.OutOfMemoryError as error:
                    raise ConfigError(
                        f"training with {self.micro_batch} pictures at once does not fit into the memory of "
                        f"{self.accelerator.device} ({first_line(error)}); {FIT_INTO_MEMORY}"
                    ) from error
        finally:
            if log:
                log.close()
        self.unreadable.merge()
        return figures | {
            "images": self.progress.images_seen,
            "seconds": round(self.progress.elapsed, 1),
            "images_per_second": self.progress.images_per_second,
            **self._skipped_steps(),
            "cut_short": self.progress.images_seen < self.config.images,
            "warnings": self.warnings,
            **self.unreadable.report(),
        }

    def _run(self, log: RunLog | None, request: StopRequest) -> dict[str, Any]:
        config, progress = self.config, self.progress
        bar = tqdm(
            total=config.images, initial=progress.images_seen, unit="img", disable=log is None, desc=self.task.name
        )
        batches = self._watched(iter(self._loader()))
        progress.start_clock()
        self.task.stop, agreement = request, StopAgreement(request)
        figures: dict[str, Any] = {}
        evaluated_at = -1
        with bar:
            if self.evaluating:  # the run that goes on here was stopped in an evaluation
                figures, evaluated_at = self._evaluate(log, bar), progress.images_seen
            while not progress.is_over():
                self.window.add(self._step(batches))
                bar.update(min(config.batch_size, config.images - bar.n))
                if progress.is_due(config.log_every):
                    self._log_training(log, bar, self.window.collect(self.accelerator))
                if config.evaluate_every and progress.is_due(config.evaluate_every):
                    figures, evaluated_at = self._evaluate(log, bar), progress.images_seen
                if config.save_every and progress.is_due(config.save_every):
                    self.save()
                if number := agreement.after_step():
                    self._stop(number)
            if number := agreement.settle():
                self._stop(number)
            if config.save_every:
                self.save()  # a run that the clock cut short can go on from here
            if evaluated_at != progress.images_seen:
                figures = self._evaluate(log, bar)
        return figures

    def _stop(self, number: int) -> NoReturn:
        saved = self.save()
        raise RunInterrupted(f"stopped by {signal.Signals(number).name}; checkpoint saved in {saved}", number)

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; counts the pictures in them that were replaced."""
        try:
            for batch in batches:
                self.unreadable.observe(batch)
                yield batch
        except WVQError as error:
            raise from_worker(error) from None

    def _loader(self) -> DataLoader:
        accelerator, config = self.accelerator, self.config
        order: dict[str, Any] = {"batch_sampler": self.stream}
        if self.stream is None:
            sampler = RunSampler(
                len(self.train_set),  # type: ignore[arg-type]  # torch's Dataset declares no length
                config.batch_size,
                config.seed,
                accelerator.process_index,
                accelerator.num_processes,
                self.progress.images_seen,
            )
            order = {"batch_size": self.micro_batch, "sampler": sampler}
        return DataLoader(
            self.train_set,
            **order,
            collate_fn=getattr(self.train_set, "collate_fn", None),  # a set that makes whole batches itself
            num_workers=config.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=end_with_parent_only,
        )

    def _step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """One step of the model, and of the adversary if it trains; returns detached figures on the device."""
        config, accelerator, progress = self.config, self.accelerator, self.progress
        modules = [optimizer.module for optimizer in self.optimizers]
        for module in modules:
            module.train()
        torch.manual_seed(config.seed + progress.images_seen + accelerator.process_index)
        progress.begin_step()
        figures: dict[str, torch.Tensor] = {}
        self.task.begin_step(self.raw_model, config.gradient_accumulation_steps)
        for _ in range(config.gradient_accumulation_steps):
            batch = {name: self._moved(value) for name, value in next(batches).items()}
            with accelerator.accumulate(*modules):
                with accelerator.autocast():
                    step = self.task.loss(self.model, batch, progress.images_seen, progress.share)
                accelerator.backward(step.loss)
                terms = {"loss": step.loss.detach(), **step.terms}
                if step.adversary_loss is not None:
                    with accelerator.autocast():
                        loss, adversary_terms = step.adversary_loss(self.optimizers[1].module)
                    accelerator.backward(loss)
                    terms |= {"discriminator_loss": loss.detach(), **adversary_terms}
            for name, value in terms.items():
                figures[name] = figures.get(name, 0) + value / config.gradient_accumulation_steps
        figures |= self._update()
        progress.end_step()
        return figures

    def _moved(self, value: torch.Tensor | list[str]) -> torch.Tensor | list[str]:
        """A part of a batch on the device; texts stay on the CPU."""
        return value.to(self.accelerator.device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    def _update(self) -> dict[str, torch.Tensor]:
        """Step each optimiser whose module had a loss, then the average of the weights; returns gradient norms."""
        scaler = self.accelerator.scaler
        figures: dict[str, torch.Tensor] = {}
        for optimizer in self.optimizers:
            if optimizer.has_gradients:
                figures |= optimizer.step(scaler, self.progress.decay_share, self.progress.images_seen)
        if scaler is not None:
            scaler.update()  # once for all optimisers, after the last: they share the scale
        if self.ema:
            self.ema.update(self.raw_model)
        return figures

    # ---- what the user sees

    def _skipped_steps(self) -> dict[str, int]:
        return {name: count for optimizer in self.optimizers for name, count in optimizer.skipped_steps().items()}

    def _log_training(self, log: RunLog | None, bar: tqdm, figures: dict[str, float]) -> None:
        more, warning = self.task.report(self.accelerator, self.progress.images_seen)
        row = {**figures, **more, "seconds": round(self.progress.elapsed, 2)}
        row["images_per_second"] = self.progress.images_per_second
        for optimizer in self.optimizers:
            row |= optimizer.learning_rates()
        row |= self._skipped_steps()
        postfix = {"loss": f"{figures['loss']:.3f}"}
        postfix |= {short: f"{figures[name]:.3g}" for short, name in _SHOWN.items() if name in figures}
        bar.set_postfix(postfix)
        if warning:
            self.warnings.append(warning)
        if log:
            if warning:
                bar.write(f"warning: {warning}")
            log.row("train", self.progress.images_seen, row)

    def _evaluate(self, log: RunLog | None, bar: tqdm) -> dict[str, Any]:
        self.evaluating = True
        model, images_seen = self.averaged_model.eval(), self.progress.images_seen
        # Without an average the model itself is evaluated: it would be compiled again for every other size of a batch.
        with torch.compiler.set_stance("force_eager"):
            figures = self.task.evaluate(model, self.accelerator)
            picture = self.task.picture(model) if log else None
        if log and picture:
            log.picture("held_out", images_seen, picture)
            log.row("validation", images_seen, figures)
            summary = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float))
            bar.write(f"{self.task.name}, held out after {images_seen:,} images: {summary}")
        wait_for_all()
        self.evaluating = False
        self.progress.start_clock()
        return figures

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """State that an exact resume needs beside weights and optimisers. All processes call it together."""
        return {
            **self.progress.state_dict(),
            "skipped": {optimizer.skipped_name: optimizer.skipped.cpu() for optimizer in self.optimizers},
            "warnings": self.warnings,
            "ema": self.ema.state_dict() if self.ema else None,
            "task": self.task.training_state(self.raw_model),
            "unreadable": self.unreadable.failures,
            "window": self.window.state_dict(),
            "evaluating": self.evaluating,
            **({"stream": self.stream.state_dict(self.progress.images_seen)} if self.stream else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` gave."""
        device = self.accelerator.device
        self.progress.load_state_dict(state)
        self.warnings = state["warnings"]
        # By their order: earlier versions had other names for them.
        for optimizer, count in zip(self.optimizers, state["skipped"].values(), strict=True):
            optimizer.skipped = count.to(device)
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        self.task.load_training_state(self.raw_model, state["task"], device)
        if self.stream:
            self.stream.load_state_dict(state["stream"], self.progress.images_seen)
        self.unreadable.failures |= state["unreadable"]
        if "window" in state:  # not in older checkpoints
            self.window.load_state_dict(state["window"], device)
            self.evaluating = state["evaluating"]

    def save(self) -> Path:
        """Write a checkpoint; see :func:`wvq.training.checkpoints.save_checkpoint`."""
        self.unreadable.merge()
        images_seen, keep = self.progress.images_seen, self.config.keep_checkpoints
        target = save_checkpoint(self.accelerator, self, self.folder, images_seen, keep)
        self.progress.start_clock()
        return target

    def load_latest(self) -> None:
        """Continue from the newest complete checkpoint.

        Raises:
            CheckpointError: the folder holds none, or a damaged one.
        """
        load_checkpoint(self.accelerator, self, decided_by_first_process(lambda: latest_checkpoint(self.folder)))
        if is_main_process():
            truncate_log(self.folder, self.progress.images_seen)
