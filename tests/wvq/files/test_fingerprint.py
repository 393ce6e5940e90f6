"""Fingerprints of data: exact counts up to 65,536 pictures, estimates above, and the file that holds them."""

import json

import numpy as np
import pytest

from wvq.errors import CheckpointError
from wvq.files.fingerprint import (
    MOST_IDS,
    DataFingerprint,
    PictureSketch,
    changed_pictures,
    mixed_pictures,
    number_new,
    same_pictures,
)

LARGE = 150_000


def numbered(*ranges: range) -> PictureSketch:
    return PictureSketch.of(f"class/{number}.png" for numbers in ranges for number in numbers)


@pytest.fixture(scope="module")
def large():
    """Two sets that are too large for their ids to be kept: 15,000 of the second are new, 30,000 of the first gone."""
    return numbered(range(LARGE)), numbered(range(30_000, 165_000))


def test_a_sketch_does_not_depend_on_the_order():
    one, other = numbered(range(100)), numbered(range(50, 100), range(50))
    assert one.digest == other.digest
    assert np.array_equal(one.ids, other.ids)
    assert one.count == 100
    assert one.digest != numbered(range(99)).digest


def test_the_digest_of_a_large_set_covers_the_names_that_are_not_kept(large):
    first, _ = large
    one_more = numbered(range(LARGE + 1))
    another = numbered(range(1, LARGE + 1))
    assert len(first.ids) == MOST_IDS
    assert len({first.digest, one_more.digest, another.digest}) == 3


def test_pictures_of_one_name_and_other_content_differ():
    sizes = [10, 20, 30]
    before = PictureSketch.of("abc", lambda number: bytes(sizes[number]))
    sizes[1] = 21
    assert number_new(before, PictureSketch.of("abc", lambda number: bytes(sizes[number]))) == 1


def test_content_is_sampled_of_the_kept_pictures_alone():
    looked_at = []
    PictureSketch.of(map(str, range(LARGE)), lambda number: looked_at.append(number) or b"")
    assert len(set(looked_at)) == len(looked_at) == MOST_IDS


def test_counts_are_exact_where_all_ids_are_kept():
    before, now = numbered(range(100)), numbered(range(3, 112))
    assert number_new(before, now) == 12
    assert number_new(now, before) == 3
    joined = before.joined(now)
    assert (joined.count, joined.is_exact, len(joined.ids)) == (112, True, 112)


def test_counts_of_large_sets_are_estimates_of_a_few_percent(large):
    before, now = large
    assert number_new(before, before) == 0
    assert number_new(before, now) == pytest.approx(15_000, rel=0.05)
    assert number_new(now, before) == pytest.approx(30_000, rel=0.05)
    joined = before.joined(now)
    assert joined.count == pytest.approx(165_000, rel=0.01)
    assert number_new(joined, now) == number_new(joined, before) == 0


def test_a_small_set_is_compared_with_a_large_one(large):
    before, _ = large
    assert number_new(before, numbered(range(5_000, 8_000))) == 0
    assert number_new(before, numbered(range(LARGE, LARGE + 3_000))) == 3_000
    assert number_new(before, PictureSketch.of([])) == 0


def test_pictures_of_one_name_at_the_end_of_a_sketch_are_not_counted_as_new():
    """Which of them are kept is left to chance."""
    names = [str(number) for number in range(LARGE // 5) for _ in range(5)]
    before = PictureSketch.of(names, lambda number: bytes(number % 5))
    now = PictureSketch.of(reversed(names), lambda number: bytes((len(names) - 1 - number) % 5))
    assert number_new(before, now) == 0


def test_the_file_holds_all_of_it(tmp_path, large):
    fingerprint = DataFingerprint(large[0], numbered(range(7)), earlier=large[1])
    fingerprint.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["data_fingerprint.json"]
    loaded = DataFingerprint.read(tmp_path)
    assert loaded.summary() == fingerprint.summary()
    assert list(loaded.summary()) == ["training", "held out", "trained on before"]
    for name in ("train", "validation", "earlier"):
        assert np.array_equal(getattr(loaded, name).ids, getattr(fingerprint, name).ids)
    assert DataFingerprint.read(tmp_path / "none") is None


DAMAGES = [
    lambda values: values.pop("train"),
    lambda values: values["train"].pop("ids"),
    lambda values: values["train"].update(count=5),
    lambda values: values["train"].update(count="4"),
    lambda values: values["train"].update(count=10**6, ids=""),
    lambda values: values["train"].update(ids="****"),
    lambda values: values["train"].update(ids=values["train"]["ids"][4:]),
    lambda values: values["train"].update(ids=None),
    lambda values: values.update(validation=[1]),
    lambda values: values.update(earlier="x"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, damage):
    DataFingerprint(numbered(range(4)), numbered(range(4, 6))).save(tmp_path)
    file = tmp_path / "data_fingerprint.json"
    values = json.loads(file.read_text())
    damage(values)
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"data_fingerprint\.json is damaged \(.*\); remove it, and the data"):
        DataFingerprint.read(tmp_path)
    file.write_text("[")
    with pytest.raises(CheckpointError, match=r"data_fingerprint\.json cannot be read"):
        DataFingerprint.read(tmp_path)


def test_weights_know_all_pictures_that_they_were_trained_on():
    first = DataFingerprint(numbered(range(10)), numbered(range(10, 12)))
    again = DataFingerprint(numbered(range(10)), numbered(range(10, 12)))
    other = DataFingerprint(numbered(range(5, 20)), numbered(range(20, 22)))
    assert again.after(None) is again
    assert again.after(first).earlier is None
    refined = other.after(first)
    assert refined.train is other.train
    assert refined.trained_on.count == 20
    third = DataFingerprint(numbered(range(30, 40)), numbered(range(2))).after(refined)
    assert third.trained_on.count == 30
    assert mixed_pictures(refined, third) == "was trained on 2 of these 2 held-out pictures"


def test_what_is_said_of_large_sets_is_an_estimate(large):
    held_out = numbered(range(200_000, 200_010))
    before, now = (DataFingerprint(sketch, held_out) for sketch in large)
    words = changed_pictures(before, now).split()
    assert words[0] == "about"
    assert int(words[1].replace(",", "")) == number_new(*large)
    unknown = next(n for n in range(LARGE) if numbered(range(n, n + 1)).ids[0] not in large[0].ids)
    one_less = DataFingerprint(numbered(range(unknown), range(unknown + 1, LARGE)), held_out)
    assert changed_pictures(one_less, before) == f"a few of {LARGE:,} training pictures are others"
    assert changed_pictures(before, before) is None
    held_out = DataFingerprint(numbered(range(LARGE, LARGE + 9)), numbered(range(100_000, 100_000 + 5_000)))
    assert mixed_pictures(before, held_out) == "was trained on about 5,000 of these 5,000 held-out pictures"


def test_pictures_that_are_only_held_out_otherwise_are_the_same():
    one = DataFingerprint(numbered(range(8)), numbered(range(8, 10)))
    other = DataFingerprint(numbered(range(2, 10)), numbered(range(2)))
    assert same_pictures(one, other)
    assert not same_pictures(one, DataFingerprint(numbered(range(2, 10)), numbered(range(1))))


def test_a_picture_that_was_on_both_sides_before_is_not_mixed_up_by_the_next_stage():
    both = DataFingerprint(numbered(range(8)), numbered(range(7, 10)))
    assert mixed_pictures(both, both) is None
    assert mixed_pictures(both, both, resumed=True) is None
    otherwise = DataFingerprint(numbered(range(8)), numbered(range(6, 10)))
    assert mixed_pictures(both, otherwise) == "was trained on 1 of these 4 held-out pictures"
