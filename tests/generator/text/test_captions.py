"""Captions by number: equal ones are one text, texts are read when needed, and draws follow the position in the run."""

import numpy as np
import pytest

from tests.tiny import index_captions
from wvq.generator.text.captions import CaptionIndex

SEVERAL = [("a", "b", "a"), ("c",), ("b", "d"), ("",), ("a",)]


def test_equal_captions_are_one_text_in_the_order_of_appearance():
    index = index_captions(SEVERAL)
    assert len(index) == 5
    assert index.texts(range(5)) == ["a", "b", "c", "d", ""]
    assert index.rows.tolist() == [0, 1, 0, 2, 1, 3, 4, 0]
    assert [index.caption(number) for number in range(8)] == ["a", "b", "a", "c", "b", "d", "", "a"]


def test_rows_are_those_of_a_dictionary():
    rng = np.random.default_rng(0)
    captions = [tuple(f"text {n}" for n in rng.integers(0, 90, rng.integers(1, 4))) for _ in range(300)]
    rows = {text: row for row, text in enumerate(dict.fromkeys(text for some in captions for text in some))}
    index = index_captions(captions, size=7)
    assert index.rows.tolist() == [rows[text] for some in captions for text in some]
    assert index.texts(range(len(index))) == list(rows)


@pytest.mark.parametrize("captions", [SEVERAL, [("a",), ("b",), ("a",)]], ids=["several", "one each"])
def test_draws_follow_seed_and_position(captions):
    index = index_captions(captions)
    starts = np.cumsum([0] + [len(some) for some in captions])
    assert index.drawn(range(len(captions)), 0).tolist() == starts[:-1].tolist()
    for picture, some in enumerate(captions):
        numbers = index.drawn([(position, picture) for position in range(40)], 3)
        expected = [np.random.default_rng((3, position, 1)).integers(len(some)) for position in range(40)]
        assert (numbers - starts[picture]).tolist() == expected


def test_the_digest_tells_texts_and_their_order_apart():
    digests = [index_captions([(text,) for text in texts]).digest for texts in ("ab", "ba", "abc", "abb")]
    assert digests[0] == digests[3]  # the same texts, each once
    assert len(set(digests)) == 3
    assert index_captions([("ab",), ("",)]).digest != index_captions([("a",), ("b",)]).digest


def test_texts_are_not_held():
    read = []

    def texts_of(picture):
        read.append(picture)
        return SEVERAL[picture]

    index = CaptionIndex([SEVERAL[:3], SEVERAL[3:]], texts_of)
    assert read == []
    assert index.texts([2, 0]) == ["c", "a"]
    assert read == [1, 0]
    held = [value for value in vars(index).values() if isinstance(value, list | tuple | dict)]
    assert held == []
