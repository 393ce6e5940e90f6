"""Where an imported model comes from: kept beside it, told in its card."""

import json

import pytest

from wvq.errors import CheckpointError
from wvq.files.origin import Origin, OriginFile

FILE = OriginFile("tokenizer", "vq.pt", "ab" * 32, "ema", ("model",))
KNOWN = Origin("LlamaGen", "https://page", (FILE,), "llamagen-b-256", "mit", "FID 5.46", "llamagen_b_256")
OWN = Origin("VAR", "https://page", (FILE, FILE))


@pytest.mark.parametrize("origin", [KNOWN, OWN])
def test_an_origin_is_read_as_it_was_written(origin, tmp_path):
    assert Origin.read(tmp_path) is None
    origin.save(tmp_path)
    assert Origin.read(tmp_path) == origin
    assert Origin.of_start(tmp_path / "generator") == origin


@pytest.mark.parametrize("change", [{"files": [{}]}, {"files": None}, {"project": None, "other": 1}])
def test_a_damaged_file_is_named(change, tmp_path):
    KNOWN.save(tmp_path)
    file = tmp_path / "origin.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"origin\.json is damaged .*; import the model again"):
        Origin.read(tmp_path)


def test_lines_for_people():
    assert KNOWN.summary() == "LlamaGen, llamagen-b-256 (vq.pt)"
    assert OWN.summary() == "VAR (vq.pt, vq.pt)"
    assert str(FILE) == 'tokenizer: vq.pt, weights under "ema" (not those under model), SHA-256 abababababab...'


def test_a_card_says_what_is_known_and_what_is_not():
    text = KNOWN.card_text()
    for part in ("Weights of [LlamaGen](https://page) as `llamagen-b-256`", "licence `mit`", "FID 5.46", "ab" * 32):
        assert part in text
    assert "--preset llamagen_b_256" in text
    text = OWN.card_text()
    assert "Weights in the layout of [VAR](https://page), brought into this form by wvq; their licence is not" in text
    assert "Published" not in text
    unlicensed = Origin("Wasserstein-VQ", "https://page", (FILE,), "wasserstein-var-4096")
    assert "the project states no licence for them" in unlicensed.card_text()
