"""Recorded steps: which way is taken, what is kept for the next batch, and what happens where none can be recorded."""

import contextlib
import functools
import logging
import threading
from types import SimpleNamespace

import pytest
import torch

from tests.generator.next_code.test_sampling import model_and_condition
from tests.tiny import make_generator
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code import captured
from wvq.generator.next_code.captured import (
    KEPT_GRAPHS,
    Captures,
    FixedDecoder,
    keeps_memory,
    kept_bytes,
    padded,
    release_captures,
    using,
    weights_key,
)
from wvq.generator.sampling import sample_codes

GUIDED = SamplingSettings(guidance_scale=2.0)
OTHERS = [{"top_k": 3}, {"temperature": 0.5}, {"window": 3}, {"guidance_interval": (0, 0.5)}]


@pytest.fixture(autouse=True)
def nothing_failed_before(monkeypatch):
    monkeypatch.setattr(captured, "_failed", set())
    captured._warn.cache_clear()


@pytest.fixture
def recorded(monkeypatch):
    """Steps that are recorded, on a device that keeps them as a GPU does."""
    seen = []
    record = Captures.record

    def watched(self, run, state):
        seen.append(len(state.codes))
        return record(self, run, state)

    def kept(model):
        key = weights_key(model)
        if model not in captured._kept or captured._kept[model].weights != key:
            captured._kept[model] = Captures(model)
        return captured._kept[model]

    monkeypatch.setattr(captured, "_captures", kept)
    monkeypatch.setattr(Captures, "record", watched)
    monkeypatch.setattr(captured, "_modes", lambda model: ["eager_graph", "loop"])
    return seen


def sample(model, condition, count=3, settings=GUIDED):
    return sample_codes(model, condition, list(range(count)), settings)


def first(condition: Condition, count: int) -> Condition:
    return condition.rows(list(range(count)))


# ---- which way


def test_on_a_processor_the_plain_loop_runs(monkeypatch):
    model, condition = model_and_condition(3)
    monkeypatch.setattr(captured, "FixedDecoder", None)
    sample(model, condition)
    assert not keeps_memory(model)


def test_ways_on_a_gpu(monkeypatch):
    monkeypatch.delenv("WVQ_CUDA_GRAPHS", raising=False)
    monkeypatch.delenv("WVQ_TRITON", raising=False)
    there = torch.device("cuda", 0)
    weights = [SimpleNamespace(device=there)]
    model = SimpleNamespace(device=there, parameters=lambda: weights)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert captured._modes(model) == ["fused_graph", "eager_graph", "loop"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert captured._modes(model) == ["overlapped_graph", "fused_graph", "eager_graph", "loop"]
    with using("eager_graph"):
        assert captured._modes(model) == ["eager_graph"]
        with using("loop"):
            assert captured._modes(model) == ["loop"]
        assert captured._modes(model) == ["eager_graph"]
    monkeypatch.setenv("WVQ_TRITON", "0")
    assert captured._modes(model) == ["eager_graph", "loop"]
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert captured._modes(model) == ["loop"]
    monkeypatch.undo()
    monkeypatch.setenv("WVQ_CUDA_GRAPHS", "0")
    assert captured._modes(model) == ["loop"]
    monkeypatch.undo()
    weights.append(SimpleNamespace(device=torch.device("cuda", 1)))
    assert captured._modes(model) == ["loop"]


def test_an_unknown_way_is_refused():
    with pytest.raises(ConfigError, match='mode "graph" is unknown; one of auto, loop, eager_graph'), using("graph"):
        pass


def test_batches_are_filled_up_whatever_came_before():
    assert [padded(count) for count in (1, 2, 3, 4, 5, 8, 9, 16, 17, 64)] == [1, 2, 4, 4, 8, 8, 16, 16, 24, 64]


# ---- what is kept


def test_the_next_batch_records_nothing_and_a_smaller_one_has_its_own_steps(recorded):
    model, condition = model_and_condition(8)
    expected = sample(model, condition, 8, SamplingSettings())
    assert recorded == [8]
    assert torch.equal(sample(model, condition, 8, SamplingSettings()), expected)
    assert torch.equal(sample(model, first(condition, 7), 7, SamplingSettings()), expected[:7])
    assert recorded == [8]
    assert torch.equal(sample(model, first(condition, 3), 3, SamplingSettings()), expected[:3])
    assert recorded == [8, 4]
    memory = captured._kept[model].memory
    sample(model, first(condition, 4), 4)  # 8 rows fit into the memory of 8 pictures
    assert recorded == [8, 4, 4]
    assert captured._kept[model].memory is memory
    assert kept_bytes(model) == memory.nbytes
    sample(model, condition, 8)  # 16 rows do not
    assert kept_bytes(model) == 2 * memory.nbytes
    release_captures(model)
    assert kept_bytes(model) == 0


@pytest.mark.parametrize("settings", OTHERS)
def test_other_settings_have_their_own_steps(recorded, settings):
    model, condition = model_and_condition(1)
    sample(model, condition, 1)
    settings = SamplingSettings(**{"guidance_scale": 2.0, **settings})
    found = sample(model, condition, 1, settings)
    assert len(recorded) == 2
    captured._kept.pop(model)
    assert torch.equal(found, sample(model, condition, 1, settings))


def test_scales_are_no_part_of_a_step(recorded):
    model, condition = model_and_condition(1)
    found = [sample(model, condition, 1, SamplingSettings(guidance_scale=scale, temperature=0)) for scale in (1.5, 9.0)]
    assert len(recorded) == 1
    assert not torch.equal(*found)


def test_the_steps_used_longest_ago_are_dropped(recorded):
    model, condition = model_and_condition(1)
    for top_k in range(1, KEPT_GRAPHS + 3):
        sample(model, condition, 1, SamplingSettings(top_k=top_k))
    assert len(captured._kept[model].graphs) == KEPT_GRAPHS
    sample(model, condition, 1, SamplingSettings(top_k=KEPT_GRAPHS + 2))
    assert len(recorded) == KEPT_GRAPHS + 2


def test_weights_that_move_are_recorded_anew_and_weights_that_change_in_place_are_not(recorded):
    model, condition = model_and_condition(1)
    before = sample(model, condition, 1)
    other = make_generator(1, num_classes=3, text_dim=16, text_length=5)
    model.load_state_dict(other.state_dict())
    changed = sample(model, condition, 1)
    assert len(recorded) == 1
    assert not torch.equal(changed, before)
    assert torch.equal(changed, sample(other, condition, 1))
    model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())
    sample(model, condition, 1)
    assert len(recorded) == 3
    sample(model.bfloat16(), condition, 1)
    assert len(recorded) == 4


def test_a_model_is_freed_with_what_is_kept_for_it(recorded):
    model = make_generator()
    captured._captures(model)
    count = len(captured._kept)
    del model
    assert len(captured._kept) == count - 1


@torch.inference_mode()
def test_a_step_is_recorded_after_it_has_run_on_a_stream_of_its_own(monkeypatch):
    events, contexts = [], []

    @contextlib.contextmanager
    def within(name, *rest, **options):
        contexts.append((name, options.get("pool")))
        yield
        contexts.pop()

    stream = SimpleNamespace(wait_stream=lambda other: events.append("wait"))
    graph = SimpleNamespace(replay=lambda: events.append("replay"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda used: within("stream"))
    monkeypatch.setattr(torch.cuda, "graph", functools.partial(within, "graph"))
    model = make_generator()
    captures = Captures(model)
    captures.pool = (1, 0)
    state = captures.state(model, 1, 1)
    state.codes.fill_(-1)  # what the last batch left

    def run():
        events.append((*contexts[-1], int(state.position), int(state.codes.min())))
        state.position.add_(1)
        return state.codes

    replay = captures.record(run, state)
    ran = ("stream", None, 1, 0)
    assert events == ["wait", ran, ran, "wait", ("graph", (1, 0), 1, 0)]
    assert replay() is state.codes
    assert events[5:] == ["replay"]


# ---- where it cannot be


def failing(monkeypatch, error):
    steps = Captures.steps

    def fail(self, kind, *rest):
        if kind == "fused":
            raise error
        return steps(self, kind, *rest)

    monkeypatch.setattr(Captures, "steps", fail)
    monkeypatch.setattr(captured, "_modes", lambda model: ["fused_graph", "eager_graph", "loop"])


def test_what_cannot_be_recorded_is_said_once_and_the_next_way_is_taken(monkeypatch, caplog):
    model, condition = model_and_condition(3)
    expected = sample(model, condition)
    failing(monkeypatch, ImportError("no module named triton"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(sample(model, condition), expected)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["sampling cannot use fused_graph and is slower: ImportError: no module named triton"]
    assert captured._failed == {("fused_graph", GUIDED)}


def test_memory_that_is_short_once_may_be_free_the_next_time(monkeypatch, caplog):
    model, condition = model_and_condition(3)
    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    sample(model, condition)
    sample(model, condition)
    assert len(caplog.records) == 1
    assert captured._failed == set()


def test_where_no_way_works_the_loop_runs(monkeypatch):
    model, condition = model_and_condition(3)
    expected = sample(model, condition)
    monkeypatch.setattr(Captures, "state", lambda *rest: 1 / 0)
    monkeypatch.setattr(captured, "_modes", lambda _: ["fused_graph", "eager_graph", "loop"])
    assert torch.equal(sample(model, condition), expected)


def test_a_way_that_was_asked_for_says_why_it_fails(monkeypatch):
    model, condition = model_and_condition(3)
    monkeypatch.setattr(Captures, "record", lambda *rest: 1 / 0)
    with using("eager_graph"), pytest.raises(ZeroDivisionError):
        sample(model, condition)


def test_two_threads_may_sample_from_one_model(recorded):
    model, condition = model_and_condition(3)
    expected = sample(model, condition)
    found = [None, None]

    def work(number: int) -> None:
        found[number] = sample(model, condition)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(codes, expected) for codes in found)


@torch.inference_mode()
def test_a_step_runs_only_where_the_cache_lacks_what_it_reads(recorded):
    model, condition = model_and_condition(2)
    sample(model, condition, 2)
    state = captured._kept[model].states[2, 4]
    ran = []

    def step():  # as a recorded one, it goes one position on
        ran.append(int(state.position))
        state.position.add_(1)

    steps = {True: step}
    decoder = FixedDecoder(model, condition, [2.0] * 16, 0, state, steps, None)
    assert not decoder.draw_next(0)  # the prefix has not been read
    decoder.logits(torch.zeros(2, 16, dtype=torch.int64), 0, 1)
    assert not decoder.draw_next(2)
    assert decoder.draw_next(1)
    assert decoder.draw_next(2)
    assert decoder.draw_next(1)  # what was read from this place on is forgotten
    assert ran == [1, 2, 1]


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager_graph", "compiled_graph", "fused_graph", "overlapped_graph", "auto"])
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "guidance_interval": (0.3, 0.8)}, {"window": 3}])
@pytest.mark.parametrize("count", [2, 6])
def test_codes_on_a_gpu_are_those_of_the_plain_loop_on_a_processor(mode, settings, count):
    if mode == "overlapped_graph" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("kernels start early on Hopper GPUs and later")
    model, condition = model_and_condition(count)
    settings = SamplingSettings(top_k=20, **settings)
    expected = sample(model, condition, count, settings)
    model.to("cuda")
    there = Condition(*(part.cuda() for part in vars(condition).values()))
    for _ in range(2):  # recorded, and replayed
        with using(mode):
            assert torch.equal(sample(model, there, count, settings).cpu(), expected)
    if mode == "auto":
        assert not captured._failed
        assert kept_bytes(model)
        release_captures(model)


@pytest.mark.gpu
def test_weights_that_change_on_a_gpu_are_seen():
    model, condition = model_and_condition(2)
    other = make_generator(1, num_classes=3, text_dim=16, text_length=5)
    expected = sample(other, condition, 2)
    model.to("cuda")
    there = Condition(*(part.cuda() for part in vars(condition).values()))
    sample(model, there, 2)
    model.load_state_dict(other.state_dict())
    assert torch.equal(sample(model, there, 2).cpu(), expected)
    model.to("cpu").to("cuda")
    assert torch.equal(sample(model, there, 2).cpu(), expected)
