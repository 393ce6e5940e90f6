"""Conditions: null and dropping, class ids, and text projections fitted to odd captions."""

import numpy as np
import pytest
import torch

from tests.tiny import TEXT_DIM, make_generator
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition, class_ids, warn_of_numbers_as_names


def batch(count: int = 4) -> Condition:
    mask = torch.ones(count, 3, dtype=torch.bool)
    mask[:, 0] = False
    return Condition(torch.arange(count), torch.randn(count, 3, 8), mask)


# ---- Condition


def test_null_has_no_class_and_no_text_and_leaves_the_original():
    given = batch()
    null = given.null()
    assert null.class_labels.tolist() == [-1, -1, -1, -1]
    assert not null.text_mask.any()
    assert null.text_features.shape == given.text_features.shape
    assert given.class_labels.tolist() == [0, 1, 2, 3]
    assert given.text_mask.any()


def test_null_of_a_missing_part_is_missing():
    null = Condition(class_labels=torch.tensor([1])).null()
    assert (null.text_features, null.text_mask) == (None, None)
    assert Condition().null() == Condition()


def test_cat_joins_every_part():
    joined = batch(2).cat(batch(2).null())
    assert joined.class_labels.tolist() == [0, 1, -1, -1]
    assert joined.text_mask.any(1).tolist() == [True, True, False, False]
    assert joined.text_features.shape == (4, 3, 8)
    assert Condition(torch.tensor([1])).cat(Condition(torch.tensor([2]))).text_mask is None


def test_drop_rates_are_as_asked_and_independent():
    count = 20_000
    given = Condition(torch.zeros(count, dtype=torch.int64), torch.zeros(count, 1, 1), torch.ones(count, 1).bool())
    kept = given.drop(0.1, 0.3)
    no_class, no_text = (kept.class_labels == -1).double(), (~kept.text_mask.any(1)).double()
    assert no_class.mean().item() == pytest.approx(0.1, abs=0.01)
    assert no_text.mean().item() == pytest.approx(0.3, abs=0.015)
    assert (no_class * no_text).mean().item() == pytest.approx(0.03, abs=0.006)
    assert given.class_labels.eq(0).all()
    assert given.text_mask.all()


def test_drop_keeps_labels_and_masks_of_the_others_and_repeats_with_the_seed():
    given = batch(50)
    torch.manual_seed(4)
    kept = given.drop(0.5, 0.5)
    here = kept.class_labels >= 0
    assert 10 < here.sum() < 40
    assert torch.equal(kept.class_labels[here], given.class_labels[here])
    rows = kept.text_mask.any(1)
    assert torch.equal(kept.text_mask[rows], given.text_mask[rows])
    torch.manual_seed(4)
    assert torch.equal(given.drop(0.5, 0.5).class_labels, kept.class_labels)


def test_drop_rate_zero_drops_nothing():
    given = batch(50)
    kept = given.drop(0.0, 0.0)
    assert torch.equal(kept.class_labels, given.class_labels)
    assert torch.equal(kept.text_mask, given.text_mask)


def test_joint_dropout_shows_enough_pictures_without_any_condition():
    count = 40_000
    given = Condition(torch.zeros(count, dtype=torch.int64), torch.zeros(count, 1, 1), torch.ones(count, 1).bool())
    kept = given.drop(0.1, 0.1, 0.1)
    no_class, no_text = kept.class_labels == -1, ~kept.text_mask.any(1)
    shares = [(a & b).double().mean().item() for a in (no_class, ~no_class) for b in (no_text, ~no_text)]
    expected = [0.1 + 0.9 * 0.01, 0.9 * 0.1 * 0.9, 0.9 * 0.9 * 0.1, 0.9 * 0.9 * 0.9]
    assert shares == pytest.approx(expected, abs=0.008)


def test_joint_dropout_leaves_the_other_draws_and_runs_without_it_as_they_were():
    given = batch(60)
    states, kept = [], []
    for joint in (0.0, 0.4):
        torch.manual_seed(4)
        kept.append(given.drop(0.3, 0.3, joint))
        states.append(torch.get_rng_state())
    torch.manual_seed(4)
    assert torch.equal(given.class_labels.masked_fill(torch.rand(60) < 0.3, -1), kept[0].class_labels)
    assert torch.equal(given.text_mask & (torch.rand(60) >= 0.3)[:, None], kept[0].text_mask)
    assert torch.equal(torch.get_rng_state(), states[0])
    changed = (kept[1].class_labels != kept[0].class_labels) | (kept[1].text_mask != kept[0].text_mask).any(1)
    assert changed.any()
    assert (kept[1].class_labels[changed] == -1).all()
    assert not kept[1].text_mask[changed].any()


def test_one_condition_alone_has_nothing_to_drop_together():
    given = batch(60)
    before = torch.get_rng_state()
    for alone in (Condition(given.class_labels), Condition(None, given.text_features, given.text_mask)):
        kept = alone.drop(0.0, 0.0, 0.9)
        assert torch.equal(torch.get_rng_state(), before)
        assert kept == alone


# ---- null texts as features


def null_features_model(**changes):
    return make_generator(text_dim=8, text_length=3, null_text="features", text_projection="mlp", **changes)


@pytest.mark.parametrize("changes", [{}, {"num_classes": 3, "condition_bias": True}], ids=["text", "class and text"])
def test_a_null_text_is_its_features_under_the_mask_of_the_text_that_it_replaces(changes):
    model, given = null_features_model(**changes), batch(2)
    labels = given.class_labels if changes else None
    mask = torch.tensor([[False, False, True], [False, True, True]])
    null = Condition(labels, given.text_features, torch.zeros_like(mask), mask)
    found = model.condition(null, 2)
    features = model.condition.null_text.expand(2, -1, -1)
    expected = model.condition(Condition(labels, features, mask), 2)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.valid, expected.valid)
    if changes:  # nothing is added to the codes for a text that is not there
        assert torch.equal(found.bias, model.condition.class_bias(labels)[:, None])


def test_where_there_is_no_text_to_replace_a_null_text_is_seen_as_a_whole():
    model = null_features_model()
    assert model.condition(Condition(), 2).valid.all()
    mask = torch.tensor([[False, True, True], [False, False, False]])  # the second picture has no caption
    prefix = model.condition(Condition(None, torch.randn(2, 3, 8), mask), 2)
    assert prefix.valid.tolist() == [[False, True, True], [True, True, True]]
    torch.testing.assert_close(prefix.tokens[1], model.condition(Condition(), 1).tokens[0])


def test_null_texts_keep_the_mask_through_dropout_batches_and_guidance():
    given = batch(50)
    torch.manual_seed(4)
    kept = given.drop(0.0, 0.5)
    dropped = ~kept.text_mask.any(1)
    assert 10 < dropped.sum() < 40
    assert torch.equal(kept.null_mask, given.text_mask)
    both = kept.cat(kept.null()).rows([3, 50])
    assert torch.equal(both.null_mask, given.text_mask[[3, 0]])
    assert not both.text_mask[1].any()
    valid = null_features_model().condition(kept, 50).valid
    assert torch.equal(valid, given.text_mask)


def test_a_null_token_does_not_see_the_mask():
    model, given = make_generator(text_dim=8, text_length=3), batch(2)
    null = given.null()
    without = Condition(null.class_labels, null.text_features, null.text_mask)
    for prefix in (model.condition(null, 2), model.condition(without, 2)):
        assert prefix.valid.tolist() == [[False, False, True]] * 2
        assert torch.equal(prefix.tokens[:, -1], model.condition.null_text.expand(2, -1))


def test_gradients_reach_the_null_features_and_both_layers_of_the_projection():
    model, codes = null_features_model(), torch.zeros(4, 16, dtype=torch.int64)
    given = batch(4).drop(0.0, 0.999)
    model(
        codes, text_features=given.text_features, text_mask=given.text_mask, null_mask=given.null_mask
    ).loss.backward()
    seen = model.condition.null_text.grad.abs().sum(1) > 0
    assert seen.tolist() == [False, True, True]  # under the mask of the batch
    assert all(layer.weight.grad.any() for layer in model.condition.text_projection.children())


def test_two_layers_without_biases_are_not_whitened():
    model = null_features_model()
    before = {name: value.clone() for name, value in model.condition.state_dict().items()}
    model.condition.fit_text([(torch.randn(4, 3, 8), torch.ones(4, 3, dtype=torch.bool))])
    assert all(torch.equal(value, before[name]) for name, value in model.condition.state_dict().items())


@pytest.mark.parametrize("missing", ["text_features", "text_mask"])
def test_a_text_without_its_mask_and_a_mask_alone_are_refused(missing):
    model = make_generator(num_classes=3, text_dim=TEXT_DIM, text_length=5)
    given = {"text_features": torch.zeros(2, 5, TEXT_DIM), "text_mask": torch.ones(2, 5, dtype=torch.bool)}
    del given[missing]
    with pytest.raises(ConfigError, match="text_features and text_mask belong together"):
        model(torch.zeros(2, 16, dtype=torch.int64), **given)


# ---- classes


def test_class_ids_take_names_and_ids():
    assert class_ids(["cross", 0, "square", 2], ["circle", "cross", "square"], 3) == [1, 0, 2, 2]
    assert class_ids(torch.tensor([2, 1]), [], 3) == [2, 1]


def test_unknown_class_names_the_near_match_and_the_known():
    with pytest.raises(ConfigError, match=r'class "crosss" is unknown \(did you mean "cross"\?\); classes: circle, '):
        class_ids(["crosss"], ["circle", "cross", "square"], 3)


def test_a_name_for_a_model_without_names_is_an_error():
    with pytest.raises(ConfigError, match='class "cross" is unknown; this model has no class names'):
        class_ids(["cross"], [], 3)


@pytest.mark.parametrize("number", [3, -1, 100])
def test_class_id_out_of_range(number):
    with pytest.raises(ConfigError, match=f"class id {number} is out of range: this model has 3 classes"):
        class_ids([number], [], 3)


@pytest.mark.parametrize("label", [1.5, None, ["cross"], True, np.bool_(True)])
def test_a_class_of_another_type_is_an_error(label):
    with pytest.raises(ConfigError, match="a class is a name or an id"):
        class_ids([label], ["circle", "cross", "square"], 3)


# ---- text


@pytest.mark.parametrize("mask", [True, False], ids=["one caption", "no caption"])
def test_captions_that_are_all_the_same_or_empty_leave_the_projections_finite(mask):
    model = make_generator(text_dim=TEXT_DIM, text_length=5, condition_bias=True)
    before = model.condition.text_bias.weight.clone()
    model.condition.fit_text([(torch.ones(4, 5, TEXT_DIM), torch.full((4, 5), mask))] * 2)
    assert torch.equal(model.condition.text_bias.weight, before)
    assert all(p.isfinite().all() for p in model.condition.parameters())


NUMBERED = ["0", "1", "10", "2"]  # as folders named by numbers are sorted as texts


def test_a_text_is_a_name_first_and_else_an_id():
    assert class_ids(["10", "2", "3", "007"], NUMBERED, 12) == [2, 3, 3, 7]
    assert class_ids(["1", "2"], ["circle", "cross", "square"], 3) == [1, 2]
    assert class_ids(["2"], [], 3) == [2]
    with pytest.raises(ConfigError, match="class id 12 is out of range: this model has 12 classes, from 0"):
        class_ids(["12"], NUMBERED, 12)
    for label in ("1.0", "-1", " 1", "²", "1e0"):
        with pytest.raises(ConfigError, match="is unknown"):
            class_ids([label], NUMBERED, 12)


def test_an_id_out_of_range_that_is_the_name_of_a_class_says_so():
    message = r'class id 10 is out of range: .* from 0; the class of that name has the id 2: give "10", as a text$'
    with pytest.raises(ConfigError, match=message):
        class_ids([10], NUMBERED, 4)
    with pytest.raises(ConfigError, match=r"from 0$"):
        class_ids([11], NUMBERED, 4)


@pytest.mark.parametrize("label", [2, 2.0, np.int64(2), np.int32(2), torch.tensor(2), np.array(2)])
def test_an_integer_is_an_id_of_whatever_library(label):
    assert class_ids([label], NUMBERED, 12) == [2]


def test_a_name_that_is_the_id_of_another_class_is_warned_of_once():
    with pytest.warns(UserWarning, match="class of that name") as caught:
        warn_of_numbers_as_names(["10", "10", "2", "1", 2, "square"], [*NUMBERED, *"abcdef", "ten"])
    assert [str(warning.message) for warning in caught] == [
        '"10" is the class of that name, not the one with that id ("ten") (1 more are alike); '
        "give an id as an integer in Python, or the other name"
    ]


@pytest.mark.parametrize("labels", [["0", "1"], ["10"], [2], ["circle"]])
def test_where_both_readings_agree_nothing_is_warned_of(labels, recwarn):
    warn_of_numbers_as_names(labels, NUMBERED)
    assert not recwarn
