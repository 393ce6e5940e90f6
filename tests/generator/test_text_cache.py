"""Text features beside a code cache: the same as encoded, encoded once, never taken for others, kept whole or not."""

import numpy as np
import pytest
import torch

from tests.tiny import save_text_encoder
from wvq.generator.text_cache import cached_text_features, features_key
from wvq.generator.text_encoder import TextEncoder

TEXTS = ["red circle", "", "blue cross", *[f"green square {i}" for i in range(100)]]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def encoder(encoder_dir):
    return TextEncoder(encoder_dir, 5)


def test_features_are_those_of_the_encoder_to_half_precision(encoder, tmp_path):
    found, (features, masks) = cached_text_features(tmp_path, TEXTS, encoder), encoder.encode(TEXTS)
    assert len(found) == 103
    for row in (0, 1, 102):
        assert torch.equal(found[row][1], masks[row])
        assert torch.equal(found[row][0], features[row].half())
    rows = np.array([5, 2])
    assert torch.equal(found[rows][0], features[[5, 2]].half())


def test_a_second_run_encodes_nothing(encoder, tmp_path, monkeypatch):
    first = cached_text_features(tmp_path, TEXTS, encoder)
    monkeypatch.setattr(TextEncoder, "stream", lambda *_: pytest.fail("encoded again"))
    second = cached_text_features(tmp_path, TEXTS, encoder)
    assert np.array_equal(first.features, second.features)


def test_other_texts_lengths_and_encoders_have_other_keys(encoder, encoder_dir):
    other = TextEncoder(encoder_dir, 5)
    with torch.no_grad():
        next(other.model.parameters()).add_(0.1)
    keys = [features_key(TEXTS, encoder), features_key(TEXTS[1:], encoder), features_key(TEXTS, other)]
    keys += [features_key(TEXTS, TextEncoder(encoder_dir, 6)), features_key(["a", "b"], encoder)]
    keys += [features_key(["ab", ""], encoder), features_key(TEXTS, TextEncoder(encoder_dir, 5, padding="left"))]
    assert len(set(keys)) == len(keys)
    assert features_key(TEXTS, TextEncoder(encoder_dir, 5)) == keys[0]


def test_an_encoding_cut_short_leaves_nothing_that_is_read(encoder, tmp_path, monkeypatch):
    stream = TextEncoder.stream

    def cut(self, *arguments):
        yield next(stream(self, *arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(TextEncoder, "stream", cut)
    with pytest.raises(KeyboardInterrupt):
        cached_text_features(tmp_path, TEXTS, encoder)
    monkeypatch.setattr(TextEncoder, "stream", stream)
    assert not list(tmp_path.iterdir())
    assert len(cached_text_features(tmp_path, TEXTS, encoder)) == 103


def test_a_folder_that_cannot_be_written_is_done_without(encoder, tmp_path):
    (tmp_path / "text").write_text("a file")
    with pytest.warns(UserWarning, match="text features are not kept in"):
        found = cached_text_features(tmp_path / "text", TEXTS, encoder)
    assert torch.equal(found[2][0], encoder.encode(TEXTS)[0][2].half().float())
