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
