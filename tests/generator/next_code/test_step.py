"""A step of fixed shapes draws the codes that the plain loop draws, run here as the function that a GPU records."""

import pytest
import torch

from tests.generator.next_code.test_sampling import LLAMAGEN, model_and_condition
from tests.tiny import TEXT_DIM, make_generator
from tests.waiting import no_waiting
from wvq.generator.base.cache import cache_shape
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.captured import using
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.next_code.step import Step, StepState
from wvq.generator.reduced import reduce_weights
from wvq.generator.sampling import sample_codes

SETTINGS = {
    "plain": {},
    "guided": {"guidance_scale": 2.0},
    "scheduled": {"guidance_scale": 3.0, "guidance_schedule": "linear"},
    "interval": {"guidance_scale": 3.0, "guidance_schedule": "cosine", "guidance_interval": (0.3, 0.8)},
    "greedy": {"guidance_scale": 1.5, "temperature": 0.0},
    "top-k": {"temperature": 0.8, "top_k": 7},
    "top-p": {"guidance_scale": 2.0, "top_p": 0.8},
    "min-p": {"guidance_scale": 2.0, "min_p": 0.05},
    "window": {"window": 4},
    "guided window": {"guidance_scale": 3.0, "guidance_interval": (0.2, 0.8), "window": 3},
    "greedy window": {"temperature": 0.0, "window": 4},
    "fixed rows": {"guidance_scale": 2.0, "deterministic": True},
}
MODELS = {
    "code vectors": {"code_dim": 4},
    "tied": {"head": "tied"},
    "grouped heads": {"num_heads": 4, "num_kv_heads": 2},
    "query norm": {"qk_norm": True},
    "targets": {"target_positions": True},
    "bias": {"condition_bias": True},
    "LlamaGen's": LLAMAGEN,
}


def both(model: ImageCodeTransformer, condition: Condition, count: int, fixed=None, **settings):
    """Codes by the plain loop, and by steps of fixed shapes."""
    found = []
    for mode in ("loop", "eager_graph"):
        with using(mode):
            found.append(sample_codes(model, condition, [*range(count)], SamplingSettings(**settings), fixed=fixed))
    return found


@pytest.fixture
def passes(monkeypatch):
    """Tokens of every pass that the model makes by itself."""
    seen = []
    run = ImageCodeTransformer.run
    monkeypatch.setattr(ImageCodeTransformer, "run", lambda s, x, *rest: seen.append(x.shape[1]) or run(s, x, *rest))
    return seen


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_codes_are_those_of_the_plain_loop(settings):
    model, condition = model_and_condition(3)  # with class, text and its padding
    plain, steps = both(model, condition, 3, **settings)
    assert torch.equal(plain, steps)
    assert plain.unique().numel() > 3


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("window", [0, 3])
def test_so_are_they_for_every_kind_of_model(changes, window):
    model, condition = model_and_condition(2, **changes)
    plain, steps = both(model, condition, 2, guidance_scale=2.0, window=window)
    assert torch.equal(plain, steps)


@pytest.mark.parametrize(
    ("kind", "changes"), [("bfloat16", {}), ("bf16", {}), ("int8", {}), ("bf16", LLAMAGEN), ("int8", LLAMAGEN)]
)
def test_so_are_they_with_smaller_weights(kind, changes):
    model, condition = model_and_condition(2, **changes)
    model = model.bfloat16() if kind == "bfloat16" else reduce_weights(model, kind)
    plain, steps = both(model, condition, 2, guidance_scale=2.0)
    assert torch.equal(plain, steps)


@pytest.mark.parametrize("conditions", [{}, {"num_classes": 3}, {"text_dim": TEXT_DIM, "text_length": 5}])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_so_are_they_under_every_condition_in_batches_that_are_filled(conditions, count):
    model, labels, text = make_generator(**conditions), None, ()
    if "num_classes" in conditions:
        labels = torch.arange(count) % 3
    if "text_dim" in conditions:
        features = torch.randn(count, 5, TEXT_DIM, generator=torch.Generator().manual_seed(1))
        text = (features, torch.arange(5) >= torch.arange(count)[:, None] % 6)
    condition = Condition(labels, *text)
    plain, steps = both(model, condition, count, guidance_scale=2.0)
    assert torch.equal(plain, steps)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0}, {"window": 3}])
def test_given_codes_stay_and_are_seen(settings):
    model, condition = model_and_condition(3)
    fixed = torch.full((3, 4, 4), -1)
    fixed[:, 0], fixed[1, 2, 1], fixed[2, 3, 3] = torch.arange(4), 7, 5
    plain, steps = both(model, condition, 3, fixed, **settings)
    assert torch.equal(plain, steps)
    assert torch.equal(steps[fixed >= 0], fixed[fixed >= 0])


def test_only_the_first_code_and_what_was_missed_need_a_pass_of_their_own(passes):
    model, condition = model_and_condition(3)
    with using("eager_graph"):
        settings = SamplingSettings(guidance_scale=2.0, guidance_interval=(0.25, 0.5))
        sample_codes(model, condition, [0, 1, 2], settings)
    prefix = model.config.prefix_length
    assert passes == [prefix, prefix + 3, 1]  # the half without the condition catches up with three codes


def test_passes_over_a_window_are_steps_too(passes):
    model, condition = model_and_condition(3)
    with using("eager_graph"):
        sample_codes(model, condition, [0, 1, 2], SamplingSettings(guidance_scale=2.0, window=3))
    assert passes[0] == model.config.prefix_length
    assert all(size < 3 for size in passes[1:])  # where the picture ends


@pytest.mark.parametrize("settings", [{"top_k": 3, "min_p": 0.1}, {"top_p": 0.5}, {"temperature": 0.0}])
def test_a_step_never_waits_for_the_device(settings):
    model = make_generator(condition_bias=True, target_positions=True, code_dim=2, text_dim=TEXT_DIM, text_length=3)
    model = model.to("meta")
    state = StepState.new(model, 2, torch.empty(cache_shape(model.config, 4), device="meta"))
    with no_waiting():
        Step(model, state, guided=True).draw(SamplingSettings(**settings))
        Step(model, state, guided=False, size=3).guess()
