"""GuidedDecoder: logits of full forward passes at every position, however positions are asked for; what runs when."""

import pytest
import torch

from tests.generator.next_code.test_sampling import LLAMAGEN, model_and_condition
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.guidance import guide
from wvq.generator.next_code.decoder import GuidedDecoder
from wvq.generator.next_code.modeling import ImageCodeTransformer

ON = (5, 9)  # positions between which guidance is on
SCALES = [2.5 if ON[0] <= position < ON[1] else 1.0 for position in range(16)]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def drawn_codes(model: ImageCodeTransformer, count: int) -> torch.Tensor:
    return torch.randint(model.config.num_codes, (count, 16), generator=torch.Generator().manual_seed(2))


def full_pass(model: ImageCodeTransformer, condition: Condition, codes: torch.Tensor, scales) -> torch.Tensor:
    """Guided logits (B, T, K) of two forward passes without a cache."""
    conditional = model(codes, condition.class_labels, condition.text_features, condition.text_mask).logits
    unconditional = model(codes, **condition.null().named()).logits
    return unconditional + torch.tensor(scales)[:, None] * (conditional - unconditional)


@pytest.fixture
def seen(monkeypatch):
    """Rows and tokens of every pass that is made."""
    passes = []
    run = ImageCodeTransformer.run
    monkeypatch.setattr(ImageCodeTransformer, "run", lambda s, x, *rest: passes.append(x.shape[:2]) or run(s, x, *rest))
    return passes


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guide_is_u_plus_s_times_c_minus_u(scale):
    conditional, unconditional = torch.randn(2, 3, 7)
    found = guide(torch.cat((conditional, unconditional)), scale)
    torch.testing.assert_close(found, unconditional + scale * (conditional - unconditional))


@pytest.mark.parametrize(
    "changes",
    [{}, {"condition_bias": True, "code_dim": 4}, LLAMAGEN | {"hidden_size": 32}],
    ids=["plain", "extras", "LlamaGen's"],
)
@pytest.mark.parametrize("scales", [[1.0] * 16, [2.5] * 16, SCALES, SCALES[::-1]], ids=["off", "on", "part", "late"])
@pytest.mark.parametrize(
    "spans",
    [
        [(position, position + 1) for position in range(16)],
        [(0, 16)],
        [(0, 1), (1, 5), (3, 7), (7, 12), (8, 12), (12, 16)],  # some anew, over both ends of guidance
        [(6, 8), (8, 16), (0, 3), (2, 16)],  # given codes first; then from the start again
    ],
    ids=["one", "all", "windows", "again"],
)
def test_logits_are_those_of_full_passes(spans, scales, changes):
    model, condition = model_and_condition(3, **changes)
    codes = drawn_codes(model, 3)
    expected = full_pass(model, condition, codes, scales)
    decoder = GuidedDecoder(model, condition, 3, scales)
    for start, end in spans:
        logits = decoder.logits(codes, start, end)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected[:, start:end], atol=2e-5, rtol=1e-4)
        logits.zero_()  # the caller's own


def test_wrong_guesses_are_forgotten():
    model, condition = model_and_condition(3)
    codes = drawn_codes(model, 3)
    guesses = codes.clone()
    guesses[:, 4:] = 31 - guesses[:, 4:]
    decoder, untouched = (GuidedDecoder(model, condition, 3, SCALES) for _ in range(2))
    for one in (decoder, untouched):
        one.logits(codes, 3, 4)
    decoder.logits(guesses, 4, 12)
    assert torch.equal(decoder.logits(codes, 4, 8), untouched.logits(codes, 4, 8))


def test_the_half_without_the_condition_runs_only_while_guidance_is_on(seen):
    model, condition = model_and_condition(3)
    codes, prefix = drawn_codes(model, 3), model.config.prefix_length
    decoder = GuidedDecoder(model, condition, 3, SCALES)
    for start, end in ((0, 2), (2, 5), (3, 7), (4, 9), (9, 11), (11, 16)):
        decoder.logits(codes, start, end)
    known = prefix + 2
    assert seen == [(3, prefix + 1), (3, 3), (3, known), (6, 4), (6, 5), (3, 2), (3, 5)]


@pytest.mark.parametrize(("start", "rows"), [(0, 6), (8, 6), (9, 3)])
def test_guidance_that_ends_before_the_first_wanted_position_takes_no_second_half(start, rows):
    model, condition = model_and_condition(3)
    decoder = GuidedDecoder(model, condition, 3, SCALES, start)
    assert decoder.both.memory.shape[2] == rows


def test_a_pass_works_out_no_more_logits_than_are_wanted(monkeypatch):
    model, condition = model_and_condition(3)
    codes, shapes = drawn_codes(model, 3), []
    logits = ImageCodeTransformer.logits
    monkeypatch.setattr(ImageCodeTransformer, "logits", lambda s, x: shapes.append(x.shape[:2]) or logits(s, x))
    decoder = GuidedDecoder(model, condition, 3, SCALES)
    for start, end in ((4, 5), (5, 7)):
        decoder.logits(codes, start, end)
    assert shapes == [(3, 1), (6, 2)]
