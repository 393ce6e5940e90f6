"""Steps of sampling that a GPU records once and replays: which step, for which batch, and what is kept for the next.

The prefix, and what the half without the condition has missed, are read by :class:`GuidedDecoder` as on a CPU, into the
cache of the steps. Elsewhere than on CUDA a step can be run as well, as the function that it is, for comparison.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch.distributed.tensor import DTensor

from wvq.errors import ConfigError, first_line
from wvq.generator.base.cache import cache_shape
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.guided import guided_positions
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.decoder import GuidedDecoder
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.next_code.step import CompiledStep, Step, StepState

logger = logging.getLogger(__name__)

MODES = ("auto", "loop", "eager_graph", "compiled_graph", "fused_graph", "overlapped_graph")
KEPT_GRAPHS = 16  # of one model; each has some hundred nodes, and all share their memory

Replay = Callable[[], torch.Tensor | None]

_mode: ContextVar[str] = ContextVar("mode", default="auto")


@contextmanager
def using(mode: str) -> Iterator[None]:
    """Sample in one way while the context is open, to compare the ways.

    Args:
        mode: ``loop``, a pass of the model a code; ``eager_graph``, a recorded step of its layers;
            ``compiled_graph``, of its layers compiled by Inductor; ``fused_graph``, of kernels of this package;
            ``overlapped_graph``, of the same, where each starts while the one before it runs. What keeps such a step
            from being recorded is then raised. ``auto`` takes the fastest on CUDA that can be recorded, and the loop
            elsewhere.

    Raises:
        ConfigError: an unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f'mode "{mode}" is unknown; one of {", ".join(MODES)}')
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def release_captures(model: CodeGenerator) -> None:
    """Free the graphs that are recorded for a model, and their cache of keys and values."""
    _kept.pop(model, None)


def keeps_memory(model: CodeGenerator) -> bool:
    """Whether the cache of keys and values is kept after a batch, for the steps that are recorded over it."""
    return isinstance(model, ImageCodeTransformer) and _modes(model) != ["loop"]


def kept_bytes(model: CodeGenerator) -> int:
    """Bytes of the cache that is kept for a model now, and used again by the next batch."""
    kept = _kept.get(model)
    return 0 if kept is None or kept.memory is None else kept.memory.nbytes


@dataclass
class FixedBatch:
    """A batch in the tensors of a step, of which the last pictures may be copies that fill it.

    Attributes:
        codes: (B, T) int64.
        seeds: one a picture.
        decoder: gives their logits, or draws.
    """

    codes: torch.Tensor
    seeds: list[int]
    decoder: FixedDecoder


class FixedDecoder(GuidedDecoder):
    """A decoder that replays a recorded step wherever the cache lacks just what the step reads.

    Args:
        model, condition, scales, start: as of :class:`GuidedDecoder`.
        state: the tensors of the steps.
        steps: recorded steps, without and with guidance.
        size: codes that they read. Steps over one code draw it; others give logits.
    """

    def __init__(
        self,
        model: ImageCodeTransformer,
        condition: Condition,
        scales: list[float],
        start: int,
        state: StepState,
        steps: dict[bool, Replay],
        size: int | None,
    ):
        super().__init__(model, condition, len(state.codes), scales, start, state.memory)
        self.state, self.steps, self.size = state, steps, size
        self.at: int | None = None  # the position that the state holds
        state.scales.copy_(self.scales[:, 0])
        for kept, new in ((state.valid, self.valid), (state.bias, self.prefix.bias)):
            if kept is not None and new is not None:
                kept.copy_(new)

    def draw_next(self, position: int) -> bool:
        """Draw the codes of a position by a recorded step, if there is one for it."""
        step = self._step(position, position + 1) if self.size is None else None
        if step is None:
            return False
        step()
        self.at = position + 1
        return True

    def logits(self, codes: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """As of :class:`GuidedDecoder`, of the codes of the state; the next call may write over the result."""
        step = self._step(start, end) if end - start == self.size else None
        logits = step() if step is not None else None
        return super().logits(codes, start, end) if logits is None else logits

    def _step(self, start: int, end: int) -> Replay | None:
        """The step for the positions, with the cache as it is after it; None if there is none."""
        known = self.model.config.prefix_length + start - 1
        guided = start < self.on.stop and end > self.on.start
        step, halves = self.steps.get(guided), [self.conditional, *([self.unconditional] if guided else [])]
        if step is None or start == 0 or min(half.length for half in halves) < known:
            return None
        for half in halves:
            half.length = known + end - start
        if self.at != start:
            self.state.position.fill_(start)
            self.at = start
        return step


class Captures:
    """What is kept for one model: recorded steps, their states, and one cache of keys and values for all of them."""

    def __init__(self, model: ImageCodeTransformer):
        self.weights = weights_key(model)
        self.lock = threading.Lock()  # a state holds one batch at a time: threads take turns
        self.graphs: OrderedDict[tuple, Replay] = OrderedDict()
        self.states: dict[tuple[int, int], StepState] = {}
        self.memory: torch.Tensor | None = None
        self.pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None

    def clear(self) -> None:
        """Free all."""
        self.graphs.clear()
        self.states.clear()
        self.memory = None

    def state(self, model: ImageCodeTransformer, count: int, rows: int) -> StepState:
        """The state of so many pictures and rows."""
        shape = cache_shape(model.config, rows)
        if self.memory is None or self.memory.numel() < math.prod(shape):
            self.clear()  # graphs read and write the old memory
            self.memory = torch.zeros(math.prod(shape), dtype=model.dtype, device=model.device)
        if (count, rows) not in self.states:
            memory = self.memory[: math.prod(shape)].view(shape)
            self.states[count, rows] = StepState.new(model, count, memory)
        return self.states[count, rows]

    def steps(
        self, kind: str, model: ImageCodeTransformer, state: StepState, settings: SamplingSettings, flags: set[bool]
    ) -> dict[bool, Replay]:
        """Recorded steps without and with guidance, as far as ``flags`` ask for them."""
        rows, size = state.memory.shape[2], settings.window or 1
        filters = (settings.temperature, settings.top_k, settings.top_p, settings.min_p)
        steps = {}
        for guided in flags:
            key = (len(state.codes), rows, guided, kind, settings.window, None if settings.window else filters)
            if key not in self.graphs:
                step = _step_class(kind, size)(model, state, guided, size)
                run = step.guess if settings.window else functools.partial(step.draw, settings)
                self.graphs[key] = self.record(run, state)
            self.graphs.move_to_end(key)
            steps[guided] = self.graphs[key]
        while len(self.graphs) > KEPT_GRAPHS:
            self.graphs.popitem(last=False)
        return steps

    def record(self, run: Replay, state: StepState) -> Replay:
        """Record a step on CUDA; elsewhere it stays the function that it is."""
        if self.pool is None:
            return run
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # whatever is set up or compiled at a first run is no part of a graph
            for _ in range(2):
                state.clear()
                run()
        current.wait_stream(stream)
        state.clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            result = run()

        def replay() -> torch.Tensor | None:
            graph.replay()
            return result

        return replay


_kept: WeakKeyDictionary[CodeGenerator, Captures] = WeakKeyDictionary()
_failed: set[tuple[str, SamplingSettings]] = set()  # what is not tried again


def weights_key(model: ImageCodeTransformer) -> tuple:
    """Changes if any weight has moved: a graph reads the addresses that it was recorded with."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple((tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in tensors)


def padded(count: int) -> int:
    """Pictures that a batch is filled up to: a power of two, from 8 on a multiple of 8, whatever came before it."""
    return -(-count // 8) * 8 if count > 4 else 1 << (count - 1).bit_length()


@contextmanager
def fixed_steps(
    model: ImageCodeTransformer,
    codes: torch.Tensor,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    places: range,
) -> Iterator[FixedBatch | None]:
    """The batch in the tensors of recorded steps while the context is open; None where the plain loop is to run.

    Args:
        model: in eval mode.
        codes: (B, T) int64, -1 where they are to be drawn.
        condition: of the B pictures.
        seeds: one a picture.
        settings: guidance and filters.
        places: positions from the first one that is drawn to the last.
    """
    modes = _modes(model)
    if modes == ["loop"] or len(places) < 2 or settings.window >= codes.shape[1]:
        yield None
        return
    captures = _captures(model)
    with captures.lock, torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext():
        yield _prepared(captures, modes, model, codes, condition, seeds, settings, places)


def _prepared(
    captures: Captures,
    modes: list[str],
    model: ImageCodeTransformer,
    codes: torch.Tensor,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    places: range,
) -> FixedBatch | None:
    """The batch for the first of the modes that works."""
    numbers = [min(number, len(seeds) - 1) for number in range(padded(len(seeds)))]
    if len(numbers) > len(seeds):
        codes, condition, seeds = codes[numbers], condition.rows(numbers), [seeds[number] for number in numbers]
    scales = settings.scales(codes.shape[1])
    on = guided_positions(scales, places.start)
    flags = {position in on for position in places[1:]}
    for mode in modes:
        if mode == "loop" or (mode, settings) in _failed:
            continue
        try:
            state = captures.state(model, len(codes), (2 if on else 1) * len(codes))
            steps = captures.steps(mode.removesuffix("_graph"), model, state, settings, flags)
        except Exception as error:  # whatever keeps a step from being recorded, there is another way
            if modes == [mode]:
                raise
            if not isinstance(error, torch.OutOfMemoryError):  # memory may be free the next time
                _failed.add((mode, settings))
            _warn(f"sampling cannot use {mode} and is slower: {type(error).__name__}: {first_line(error)}")
            captures.clear()
            continue
        state.codes.copy_(codes)
        state.given.copy_(codes)
        decoder = FixedDecoder(model, condition, scales, places.start, state, steps, settings.window or None)
        return FixedBatch(state.codes, seeds, decoder)
    return None


def _modes(model: ImageCodeTransformer) -> list[str]:
    """The ways to sample that are tried, in order."""
    if (mode := _mode.get()) != "auto":
        return [mode]
    if (
        model.device.type != "cuda"
        or os.environ.get("WVQ_CUDA_GRAPHS", "1") == "0"
        or torch.is_autocast_enabled("cuda")
    ):
        return ["loop"]
    if any(weight.device != model.device or isinstance(weight, DTensor) for weight in model.parameters()):
        return ["loop"]  # spread over several devices
    if os.environ.get("WVQ_TRITON", "1") == "0":
        return ["eager_graph", "loop"]
    # Only Hopper and what came after it can start a kernel before the end of the one before.
    overlapped = ["overlapped_graph"] if torch.cuda.get_device_capability(model.device) >= (9, 0) else []
    return [*overlapped, "fused_graph", "eager_graph", "loop"]


def _captures(model: ImageCodeTransformer) -> Captures:
    """What is kept for the model, anew if its weights have moved."""
    if model.device.type != "cuda":  # nothing is recorded: steps are functions, which hold the model
        return Captures(model)
    kept = _kept.get(model)
    if kept is None or kept.weights != weights_key(model):
        kept = _kept[model] = Captures(model)
    return kept


def _step_class(kind: str, size: int) -> type[Step]:
    if kind in ("fused", "overlapped") and size == 1:
        from wvq.generator.next_code.fused import FusedStep, OverlappedStep  # Triton is not everywhere

        return OverlappedStep if kind == "overlapped" else FusedStep
    return CompiledStep if kind == "compiled" else Step


@functools.cache
def _warn(message: str) -> None:
    """Log a warning once."""
    logger.warning(message)
