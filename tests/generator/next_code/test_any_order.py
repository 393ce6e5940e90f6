"""Sampling in any order, several codes a pass: logits of full forward passes, orders of the seed, given codes."""

import pytest
import torch

from tests.generator.next_code.test_sampling import LLAMAGEN, model_and_condition, one
from tests.tiny import make_generator
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.draws import uniforms
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code import any_order
from wvq.generator.next_code.any_order import AnyOrderDecoder, drawing_order, group_sizes
from wvq.generator.next_code.decoder import GuidedDecoder
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.sampling import sample_codes

EXTRAS = {"code_dim": 4, "condition_bias": True, "num_kv_heads": 1, "qk_norm": True}
GROUPS = [1, 2, 5, 1, 1, 6]


def any_order_model(count: int, **changes) -> tuple[ImageCodeTransformer, Condition]:
    return model_and_condition(count, target_positions=True, **changes)


def orders(count: int) -> torch.Tensor:
    return torch.rand(count, 16, generator=torch.Generator().manual_seed(3)).argsort(1)


def full_logits(model, condition, codes, order, scales) -> torch.Tensor:
    """Guided logits (B, T, K) of two forward passes of codes (B, T), place by place of the order."""
    conditional = model(codes, condition.class_labels, condition.text_features, condition.text_mask, order=order).logits
    unconditional = model(codes, **condition.null().named(), order=order).logits
    return unconditional + torch.tensor(scales)[:, None] * (conditional - unconditional)


def masks() -> torch.Tensor:
    """Given codes (7, 4, 4) of pictures of which some have as many open positions, and one has none."""
    fixed = torch.full((7, 4, 4), -1)
    fixed[1, 0, 0], fixed[2, 3, 2] = 3, 4
    fixed[3:5, :, 0] = 5
    fixed[5, 2:, 1:] = 6
    fixed[6] = 7
    return fixed


# ---- groups and orders


def test_groups_grow_and_hold_all_codes():
    for count in range(1, 80):
        for passes in range(1, count + 3):
            sizes = group_sizes(count, passes)
            assert (sum(sizes), len(sizes), min(sizes) >= 1) == (count, min(passes, count), True)
    assert group_sizes(16, 4) == [1, 4, 5, 6]
    assert group_sizes(256, 8) == [5, 14, 24, 32, 39, 44, 48, 50]


def test_orders_are_permutations_with_the_known_first():
    known = torch.zeros(5, 12, dtype=torch.bool)
    known[:, 3], known[:3, 7], known[3:, 11] = True, True, True
    keys = uniforms([1, 2, 3, 4, 1], 12)
    order = drawing_order(keys, known, [1, 4, 5], [3, 4])
    assert torch.equal(order.sort(1).values, torch.arange(12).expand(5, -1))
    assert known.gather(1, order[:, :2]).all()
    alone = [drawing_order(keys[i : i + 1], known[i : i + 1], [1, 4, 5], [3, 4]) for i in range(5)]
    assert torch.equal(order, torch.cat(alone))
    assert len({tuple(row) for row in order.tolist()}) == 5


def test_members_of_a_group_lie_far_apart():
    order = drawing_order(uniforms(list(range(50)), 64), torch.zeros(50, 64, dtype=torch.bool), [2, 4, 58], [8, 8])
    first, second = (
        torch.stack((order[:, group] // 8, order[:, group] % 8), 2).float() for group in (range(2), range(2, 6))
    )
    assert torch.cdist(first, first)[:, 0, 1].min() > 4
    assert (torch.cdist(second, second) + 9 * torch.eye(4)).min() > 3


# ---- logits


@pytest.mark.parametrize(
    "scales", [[1.0] * 16, [2.5] * 16, [1.0] * 4 + [0.0] * 6 + [1.0] * 6], ids=["off", "on", "part"]
)
@pytest.mark.parametrize("changes", [{}, EXTRAS, LLAMAGEN | {"hidden_size": 32}], ids=["plain", "extras", "LlamaGen's"])
@pytest.mark.parametrize("given", [0, 3])
def test_logits_of_a_group_are_those_of_full_passes(scales, changes, given):
    """Each member's are those at its position if it came next, whatever the others of its group are."""
    model, condition = any_order_model(5, **changes)
    codes, order = torch.randint(32, (5, 16), generator=torch.Generator().manual_seed(2)), orders(5)
    decoder = AnyOrderDecoder(order, model, condition, scales, given)
    start = given
    for size in GROUPS if given == 0 else [4, 1, 8]:
        with torch.inference_mode():
            logits = decoder.logits(codes.gather(1, order), start, start + size)
        for member in range(size):
            next_one = order.clone()
            next_one[:, [start, start + member]] = order[:, [start + member, start]]
            shifted = [*scales[:start], scales[start + member], *scales[start + 1 :]]
            expected = full_logits(model, condition, codes, next_one, shifted)[:, start]
            torch.testing.assert_close(logits[:, member], expected, atol=1e-5, rtol=1e-5)
        start += size


@pytest.mark.parametrize("classes", [True, False], ids=["a token a pass", "with text"])
def test_row_by_row_it_is_the_plain_decoder(classes):
    model = make_generator(num_classes=3, target_positions=True)
    condition = Condition(torch.tensor([0, 1, -1]))
    if not classes:
        model, condition = any_order_model(3)
    codes, order = (
        torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(2)),
        torch.arange(16).expand(3, -1),
    )
    scales = SamplingSettings(guidance_scale=2.0, guidance_interval=(0.3, 0.8)).scales(16)
    with torch.inference_mode():
        plain, in_order = (
            GuidedDecoder(model, condition, 3, scales),
            AnyOrderDecoder(order, model, condition, scales, 0),
        )
        for position in range(16):
            expected, found = (decoder.logits(codes, position, position + 1) for decoder in (plain, in_order))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "top_p": 0.9, "temperature": 0.8}])
def test_a_code_a_pass_row_by_row_draws_the_codes_of_the_plain_sampler(settings, monkeypatch):
    model, condition = any_order_model(5)
    plain = sample_codes(model, condition, list(range(5)), SamplingSettings(**settings))
    monkeypatch.setattr(any_order, "drawing_order", lambda keys, *_: torch.arange(16).expand(len(keys), -1))
    found = sample_codes(model, condition, list(range(5)), SamplingSettings(passes=16, **settings))
    assert torch.equal(found, plain)


# ---- sampling


def test_a_pass_reads_the_drawn_codes_and_asks_for_the_next_group(monkeypatch):
    model, condition = any_order_model(3)
    seen = []
    run = ImageCodeTransformer.run_blocks
    monkeypatch.setattr(
        ImageCodeTransformer, "run_blocks", lambda s, x, *rest: seen.append(tuple(x.shape[:2])) or run(s, x, *rest)
    )
    sample_codes(model, condition, [0, 1, 2], SamplingSettings(passes=4, guidance_scale=2.0))
    prefix = model.config.prefix_length
    assert seen == [(6, prefix), (6, 4), (6, 3 + 5), (6, 4 + 6)]


@pytest.mark.parametrize("passes", [1, 4, 16])
def test_greedy_codes_are_the_likeliest_at_every_position(passes):
    model, condition = any_order_model(3)
    codes = sample_codes(model, condition, [0, 1, 2], SamplingSettings(temperature=0, passes=passes)).flatten(1)
    keys, sizes = uniforms([0, 1, 2], 32)[:, 16:], group_sizes(16, passes)
    order = drawing_order(keys, torch.zeros(3, 16, dtype=torch.bool), sizes, [4, 4])
    start = 0
    for size in sizes:
        for member in range(start, start + size):
            next_one = order.clone()
            next_one[:, [start, member]] = order[:, [member, start]]
            logits = full_logits(model, condition, codes, next_one, [1.0] * 16)[:, start]
            assert torch.equal(logits.argmax(-1), codes.gather(1, order[:, member, None])[:, 0])
        start += size


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "top_k": 10, "guidance_interval": (0.2, 0.7)}])
def test_a_batch_of_seven_with_other_masks_equals_seven_singles(settings):
    model, condition = any_order_model(7, **EXTRAS)
    settings, fixed = SamplingSettings(passes=5, **settings), masks()
    together = sample_codes(model, condition, list(range(7)), settings, fixed=fixed)
    singles = [sample_codes(model, one(condition, i), [i], settings, fixed=fixed[i : i + 1]) for i in range(7)]
    assert torch.equal(together, torch.cat(singles))
    assert torch.equal(torch.where(fixed < 0, together, fixed), together)
    other = sample_codes(model, condition, list(range(7, 14)), settings, fixed=fixed)
    assert not torch.equal(other[:6], together[:6])


def test_deterministic_codes_are_those_of_any_batch():
    model = make_generator(hidden_size=64, num_classes=3, target_positions=True)
    condition, fixed = Condition(torch.arange(7) % 3), masks()
    settings = SamplingSettings(passes=5, guidance_scale=2.0, deterministic=True)
    together = sample_codes(model, condition, list(range(7)), settings, fixed=fixed)
    for part in ([0, 3], [1, 2, 4, 5], [6]):
        alone = sample_codes(model, condition.rows(part), part, settings, fixed=fixed[part])
        assert torch.equal(alone, together[part])


def test_given_codes_after_an_open_position_are_seen():
    model, condition = any_order_model(1)
    settings = SamplingSettings(temperature=0, passes=1)
    fixed = torch.full((1, 4, 4), 3)
    fixed[0, 1, 1] = -1
    drawn = {int(sample_codes(model, condition, [0], settings, fixed=fixed)[0, 1, 1])}
    for last in range(1, 8):
        fixed[0, 3, 3] = last
        drawn.add(int(sample_codes(model, condition, [0], settings, fixed=fixed)[0, 1, 1]))
    assert len(drawn) > 1


def test_passes_above_the_open_positions_are_as_many_as_those():
    model, condition = any_order_model(2)
    fixed = torch.full((2, 4, 4), 3)
    fixed[:, 1, :3] = -1
    few, many = (
        sample_codes(model, condition, [0, 1], SamplingSettings(passes=passes), fixed=fixed) for passes in (3, 16)
    )
    assert torch.equal(few, many)


def test_all_codes_given_are_returned():
    model, condition = any_order_model(2)
    fixed = torch.arange(32).view(2, 4, 4)
    assert torch.equal(sample_codes(model, condition, [0, 1], SamplingSettings(passes=4), fixed=fixed), fixed)


def test_no_step_is_recorded(monkeypatch):
    """Recorded steps read row by row; in any order the model itself runs."""
    model, condition = any_order_model(2)
    monkeypatch.setattr("wvq.generator.next_code.sampling.fixed_steps", None)
    assert sample_codes(model, condition, [0, 1], SamplingSettings(passes=4)).min() >= 0


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"passes": 17}, "passes is 17, above the number of codes, 16; 0 draws row by row"),
        ({}, {"passes": 4, "window": 2}, "passes draws codes in any order, and window row by row"),
        (
            {"any_order": False},
            {"passes": 4},
            r"passes needs a generator that was trained in random order to the end \(objective.order_anneal: null\)",
        ),
        (
            {"target_positions": False},
            {"passes": 17},
            "passes needs a generator that was trained with objective.random_",
        ),
    ],
)
def test_settings_that_a_generator_cannot_follow_are_refused(changes, settings, message):
    model = make_generator(**{"target_positions": True, **changes})
    with pytest.raises(ConfigError, match=message):
        sample_codes(model, Condition(), [0], SamplingSettings(**settings))
