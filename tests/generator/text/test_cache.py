"""Text features on disk and in memory: those of the encoder, encoded once, never taken for others, kept whole."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.tiny import index_captions
from wvq.errors import CacheError, CheckpointError, ConfigError
from wvq.generator.text import cache as text_cache
from wvq.generator.text.cache import BATCH, PartSizes, features_key
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.text.features import features_bytes, text_features

TEXTS = ["red circle", "", "blue cross", *[f"green {'square ' * (i % 3)}{i}" for i in range(200)]]


def index(texts):
    return index_captions([(text,) for text in texts])


@pytest.fixture
def encoder(encoder_dir):
    return TextEncoder(encoder_dir, 5)


@pytest.fixture
def texts():
    """Different ones: the words beyond the vocabulary are one unknown word to the encoder."""
    return index(TEXTS)


def encoded(encoder, texts):
    features, masks = zip(*encoder.stream(texts, BATCH), strict=True)
    features, masks = torch.cat(features), torch.cat(masks)
    return features.masked_fill(~masks[..., None], 0).half(), masks


@pytest.mark.parametrize("kept", ["disk", "memory"])
def test_features_are_those_of_the_encoder_to_half_precision(kept, encoder, texts, tmp_path):
    found = text_features(kept, tmp_path, texts, encoder)
    features, masks = encoded(encoder, TEXTS)
    assert len(found) == 203
    assert found.sizes.parts == 4
    rows = np.array([5, 2, 202, 1, 130, 5, 64])  # of several parts, out of order, one twice, one without tokens
    assert torch.equal(found[rows][0], features[rows])
    assert torch.equal(found[rows][1], masks[rows])
    assert torch.equal(found[2][0], features[2])
    assert torch.equal(found[np.arange(203)][0], features)
    assert found[np.array([1])][1].sum() == 0
    assert any(tmp_path.iterdir()) == (kept == "disk")


def test_only_valid_tokens_are_kept(encoder, texts, tmp_path):
    found = text_features("disk", tmp_path, texts, encoder)
    valid = int(encoded(encoder, TEXTS)[1].sum())
    (folder,) = tmp_path.iterdir()
    held = sum(np.load(file).nbytes for file in folder.glob("tokens-*.npy"))
    assert held == valid * encoder.dim * 2 < len(TEXTS) * 5 * encoder.dim * 2
    assert all(isinstance(part, np.memmap) for part in found.tokens)


def test_texts_without_tokens_only(encoder, tmp_path):
    found = text_features("disk", tmp_path, index([""]), encoder)
    assert found[0][1].sum() == 0
    assert found[0][0].shape == (5, encoder.dim)


def test_a_second_run_encodes_nothing(encoder, texts, tmp_path, monkeypatch):
    first = text_features("disk", tmp_path, texts, encoder)
    monkeypatch.setattr(TextEncoder, "stream", lambda *_: pytest.fail("encoded again"))
    second = text_features("disk", tmp_path, texts, encoder)
    assert torch.equal(first[np.arange(203)][0], second[np.arange(203)][0])


def test_other_texts_lengths_and_encoders_have_other_keys(encoder, encoder_dir, texts):
    other = TextEncoder(encoder_dir, 5)
    with torch.no_grad():
        next(other.model.parameters()).add_(0.1)
    keys = [features_key(texts, encoder), features_key(index(TEXTS[1:]), encoder), features_key(texts, other)]
    keys += [features_key(texts, TextEncoder(encoder_dir, 6)), features_key(index(["a", "b"]), encoder)]
    keys += [features_key(index(["ab", ""]), encoder)]
    keys += [features_key(texts, TextEncoder(encoder_dir, 5, padding="left"))]
    assert len(set(keys)) == len(keys)
    assert features_key(index(TEXTS), TextEncoder(encoder_dir, 5)) == keys[0]


def test_an_encoding_cut_short_is_not_read_and_goes_on_where_it_stopped(encoder, texts, tmp_path, monkeypatch):
    encode, parts = text_cache.encode_part, []

    def cut(some, encoder):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(some)
        return encode(some, encoder)

    monkeypatch.setattr("wvq.generator.text.features.encode_part", cut)
    with pytest.raises(KeyboardInterrupt):
        text_features("disk", tmp_path, texts, encoder)
    (folder,) = tmp_path.iterdir()
    with pytest.raises(CacheError, match="holds no text features"):
        text_cache.open_features(folder)
    parts.clear()
    found = text_features("disk", tmp_path, texts, encoder)
    assert [part[0] for part in parts] == [TEXTS[128], TEXTS[192]]
    assert torch.equal(found[np.arange(203)][0], encoded(encoder, TEXTS)[0])


def test_a_damaged_part_is_named(encoder, texts, tmp_path):
    text_features("disk", tmp_path, texts, encoder)
    (folder,) = tmp_path.iterdir()
    for damage in (lambda file: file.write_bytes(b"?"), lambda file: np.save(file, np.zeros((3, 16), np.float16))):
        damage(folder / "tokens-00001.npy")
        with pytest.raises(CacheError, match=f"text features in {folder} .*; remove that folder"):
            text_features("disk", tmp_path, texts, encoder)


def test_a_folder_that_cannot_be_written_is_done_without(encoder, texts, tmp_path):
    (tmp_path / "text").write_text("a file")
    with pytest.warns(UserWarning, match="text features are not kept in"):
        found = text_features("disk", tmp_path / "text", texts, encoder)
    assert torch.equal(found[np.arange(203)][0], encoded(encoder, TEXTS)[0])


def test_a_disk_that_fills_up_leaves_what_is_done(encoder, texts, tmp_path, monkeypatch):
    written = []

    def write(folder, part, *values):
        if written:
            raise OSError(28, "No space left on device")
        written.append(part)
        text_cache.write_part(folder, part, *values)

    monkeypatch.setattr("wvq.generator.text.features.write_part", write)
    with pytest.raises(CacheError, match=r"cannot be written \(No space left on device\); make room"):
        text_features("disk", tmp_path, texts, encoder)
    monkeypatch.undo()
    assert text_cache.missing_parts(next(tmp_path.iterdir()), PartSizes(203, 5, 16)) == [1, 2, 3]
    assert len(text_features("disk", tmp_path, texts, encoder)) == 203


def test_parts_of_other_processes_are_waited_for_and_missed(encoder, texts, tmp_path, monkeypatch):
    late = []
    monkeypatch.setattr("wvq.generator.text.features.write_part", lambda *part: late.append(part))
    monkeypatch.setattr("wvq.generator.text.features._SEEN_LATE", 0)
    with pytest.raises(CacheError, match="lacks what other processes have written: it is not the same folder"):
        text_features("disk", tmp_path, texts, encoder)
    late.clear()
    monkeypatch.setattr("wvq.generator.text.features._SEEN_LATE", 60)
    monkeypatch.setattr("time.sleep", lambda _: text_cache.write_part(*late.pop(0)))  # they come to be seen
    assert torch.equal(text_features("disk", tmp_path, texts, encoder)[0][0], encoded(encoder, TEXTS)[0][0])
    assert late == []


def test_room_is_told_before_work_begins(encoder, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("wvq.generator.text.features.encode_part", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2_000}))
    with pytest.raises(
        ConfigError, match=r"^condition.text_cache disk: the features of 203 captions need .* set it to none"
    ):
        text_features("disk", tmp_path, texts, encoder)
    monkeypatch.setattr("wvq.generator.text.features.available_memory", lambda _: 40_000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match=r"^condition.text_cache memory: .* \(8 times 0.0\) .* set it to disk"):
        text_features("memory", tmp_path, texts, encoder)


def test_room_is_estimated_from_a_sample(encoder, texts):
    exact = int(encoded(encoder, TEXTS)[1].sum()) * encoder.dim * 2
    assert features_bytes(texts, encoder) == pytest.approx(exact, rel=0.05)
    assert features_bytes(texts, encoder, enough=1e9) == 203 * 5 * encoder.dim * 2


def test_features_beyond_half_precision_are_refused(encoder, texts, tmp_path):
    with torch.no_grad():
        encoder.model.encoder.layer[-1].output.LayerNorm.weight.fill_(1e6)
    with pytest.raises(CheckpointError, match=r"beyond what half precision holds; set condition\.text_cache none"):
        text_features("disk", tmp_path, texts, encoder)


def test_parts_are_whole_batches_of_bounded_size():
    for count, length, dim in ((1, 5, 16), (203, 5, 16), (1_000_000, 64, 768), (50_000_000, 120, 2_048)):
        sizes = PartSizes(count, length, dim)
        assert sizes.texts % BATCH == 0
        assert sizes.texts * length * dim * 2 <= 2**32
        rows = [sizes.rows(part) for part in range(sizes.parts)]
        assert (rows[0].start, rows[-1].stop) == (0, count)
        assert all(first.stop == second.start for first, second in pairwise(rows))
        assert sizes.parts < 10_000  # memory maps that a process may have


def test_loader_processes_open_the_files_anew(encoder, texts, tmp_path):
    found = text_features("disk", tmp_path, texts, encoder)
    pickled = pickle.dumps(found)
    assert len(pickled) < 1_000
    assert torch.equal(pickle.loads(pickled)[np.arange(203)][0], found[np.arange(203)][0])
    held = pickle.loads(pickle.dumps(text_features("memory", tmp_path, texts, encoder)))
    assert torch.equal(held[7][0], found[7][0])
