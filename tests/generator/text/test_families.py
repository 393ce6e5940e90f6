"""Every family of text encoders: features of the caption alone, one identity through saving, one line for the rest."""

import contextlib
import json
import re
import shutil

import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from tests.text_encoders import ENCODERS, WIDTH, save_encoder, save_stack
from tests.tiny import plant
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.text.families import FAMILIES

CAPTIONS = ["red circle", "", "green blue cross", "yellow", "square red circle blue green"]
LENGTH = 8


@pytest.fixture(scope="module", params=ENCODERS)
def folder(request, tmp_path_factory):
    return save_encoder(request.param, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder):
    return TextEncoder(folder, LENGTH)


def alone(folder, caption: str) -> torch.Tensor:
    """What transformers' own classes give for a caption without any padding: hidden states (L, E)."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    if "t5" in model.config.model_type:
        model = model.get_encoder()
    else:
        model = getattr(model, "text_model" if "clip" in model.config.model_type else model.base_model_prefix, model)
    ids = AutoTokenizer.from_pretrained(folder)(caption, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).last_hidden_state[0].float()


def test_every_supported_type_is_tested():
    tested = {getattr(transformers, class_name).config_class.model_type for _, class_name, _ in ENCODERS.values()}
    assert tested == {name for family in FAMILIES for name in family.classes}


def test_features_are_those_of_the_caption_alone_at_the_right_end(encoder, folder):
    features, mask = encoder.encode(CAPTIONS)
    assert 1 < mask.sum(1).max() <= LENGTH
    assert features.shape == (len(CAPTIONS), LENGTH, WIDTH)
    assert features.dtype == torch.float32
    coarse = 3e-2 if encoder.model.dtype == torch.bfloat16 else 1e-5
    for row, caption in enumerate(CAPTIONS):
        if not caption:
            assert not mask[row].any()
            continue
        expected = alone(folder, caption)
        assert mask[row].tolist() == [False] * (LENGTH - len(expected)) + [True] * len(expected)
        torch.testing.assert_close(features[row][mask[row]], expected, atol=coarse, rtol=coarse)
    assert (features[~mask] == 0).all()


def test_captions_of_a_batch_are_told_apart(encoder):
    features, mask = encoder.encode(["red circle", "blue circle"])
    assert (features[0][mask[0]] - features[1][mask[1]]).abs().max() > 1e-2


def test_saving_keeps_features_and_identity(encoder, folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    encoder.save_pretrained(first)
    again = TextEncoder(first, LENGTH)
    again.save_pretrained(second)
    assert torch.equal(again.encode(CAPTIONS)[0], encoder.encode(CAPTIONS)[0])
    assert encoder.identity() == again.identity() == TextEncoder(second, 5).identity() == encoder.identity()
    assert re.fullmatch("[0-9a-f]{64}", encoder.identity())


def test_a_text_of_nothing_but_blanks_has_no_features(encoder):
    features, mask = encoder.encode(["", " "])
    assert not mask.any()
    assert (features == 0).all()


# ---- T5


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_a_stack_that_was_saved_by_itself_is_the_same_encoder(name, tmp_path):
    whole = save_encoder(name, tmp_path / "whole")
    stack = TextEncoder(save_stack(whole, tmp_path / "stack"), LENGTH)
    assert stack.identity() == TextEncoder(whole, LENGTH).identity()
    stack.save_pretrained(tmp_path / "again")
    # The names that transformers' own class gives them, for other programs.
    _, info = getattr(transformers, f"{name.upper()}EncoderModel").from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_the_decoder_of_t5_is_not_kept(tmp_path):
    encoder = TextEncoder(save_encoder("t5", tmp_path), LENGTH)
    assert not [name for name, _ in encoder.model.named_parameters() if "decoder" in name]


# ---- identity


@pytest.mark.parametrize("name", ["bert", "t5", "clip, the text model alone", "qwen3"])
@pytest.mark.parametrize("change", ["a weight", "a field", "a word", "the cutting", "the padding"])
def test_whatever_changes_features_changes_the_identity(name, change, tmp_path):
    folder = save_encoder(name, tmp_path / "one")
    before = TextEncoder(folder, LENGTH).identity()
    options = {}
    if change == "a field":
        values = json.loads((folder / "config.json").read_text())
        field = next(f for f in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if f in values)
        (folder / "config.json").write_text(json.dumps(values | {field: 0.5}))
    elif change == "a word":
        values = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = values["model"]["vocab"]
        vocabulary["yellow"], vocabulary["circle"] = vocabulary["circle"], vocabulary["yellow"]
        (folder / "tokenizer.json").write_text(json.dumps(values))
    elif change == "the cutting":
        values = json.loads((folder / "tokenizer.json").read_text())
        lower = {"type": "Lowercase"} if values["normalizer"] is None else None
        (folder / "tokenizer.json").write_text(json.dumps(values | {"normalizer": lower}))
    elif change == "the padding":
        options = {"padding": "left"}
    encoder = TextEncoder(folder, LENGTH, **options)
    if change == "a weight":
        with torch.no_grad():
            next(encoder.model.parameters()).add_(0.1)
    assert encoder.identity() != before


def test_a_pooler_is_no_part_of_the_identity(tmp_path):
    # A language model's file has none, and transformers then draws one at random.
    folder = save_encoder("bert, of a language model", tmp_path)
    torch.manual_seed(1)
    first = TextEncoder(folder, LENGTH)
    torch.manual_seed(2)
    assert TextEncoder(folder, LENGTH).identity() == first.identity()


_SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_BYTES = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
_WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "red": 5}
_PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁red", -1.0), ("▁", -2.0), ("r", -3.0), ("e", -3.0)]
_CLIP = {piece + end: 256 * i + row for i, end in enumerate(("", "</w>")) for piece, row in _BYTES.items()}
_CLIP |= {"re": 512, "red</w>": 513, "<|startoftext|>": 514, "<|endoftext|>": 515}


@pytest.mark.parametrize(
    ("tokenizer", "config"),
    [
        (lambda: transformers.BertTokenizer(vocab=_WORDS), transformers.BertConfig(**_SMALL)),
        (
            lambda: transformers.T5Tokenizer(vocab=_PIECES, extra_ids=10),
            transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
        ),
        (
            lambda: transformers.CLIPTokenizer(vocab=_CLIP, merges=[("r", "e"), ("re", "d</w>")]),
            transformers.CLIPTextConfig(**_SMALL),
        ),
        (
            lambda: transformers.Qwen2Tokenizer(vocab=_BYTES | {"re": 256, "<|endoftext|>": 257}, merges=[("r", "e")]),
            transformers.Qwen3Config(**_SMALL, num_key_value_heads=1, head_dim=8),
        ),
    ],
    ids=["BERT", "T5", "CLIP", "Qwen"],
)
def test_tokenizers_of_the_families_own_classes_keep_the_identity(tokenizer, config, tmp_path):
    made = tokenizer()
    made.save_pretrained(tmp_path / "first")
    config.vocab_size = len(made)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "first")
    found = []
    for name, following in (("first", "second"), ("second", "third"), ("third", "fourth")):
        encoder = TextEncoder(tmp_path / name, LENGTH)
        found.append((encoder.identity(), encoder.tokenizer("Red  red")["input_ids"]))
        encoder.save_pretrained(tmp_path / following)
    assert found[0] == found[1] == found[2]


# ---- lengths


@pytest.mark.parametrize(
    ("name", "most"), [("bert", 40), ("roberta", 39), ("mpnet", 38), ("clip", 40), ("qwen2", 40), ("distilbert", 40)]
)
def test_a_length_beyond_the_positions_is_one_line(name, most, tmp_path):
    folder = save_encoder(name, tmp_path)
    longest = TextEncoder(folder, most)
    with pytest.warns(UserWarning, match="are cut"):
        assert longest.encode(["red " * 50])[1].all()
    with pytest.raises(ConfigError, match=rf"text_length {most + 1} is more than the {most} tokens that"):
        TextEncoder(folder, most + 1)


def test_relative_positions_have_no_limit(tmp_path):
    assert TextEncoder(save_encoder("t5", tmp_path), 600).encode(["red"])[0].shape == (1, 600, WIDTH)


@pytest.mark.parametrize(("name", "least"), [("bert", 3), ("t5", 2), ("qwen3", 1)])
def test_a_length_without_room_for_words_is_one_line(name, least, tmp_path):
    folder = save_encoder(name, tmp_path)
    assert TextEncoder(folder, least).encode(["red"])[1].all()
    with pytest.raises(ConfigError, match=rf"^condition\.text_length {least - 1} leaves no room .* at least {least}$"):
        TextEncoder(folder, least - 1)


# ---- what is not supported


@pytest.mark.parametrize("content", ["{", '{"model": {"type": "Nonsense"}}', "[]", ""])
def test_a_damaged_tokenizer_is_one_line(content, tmp_path):
    folder = save_encoder("qwen3", tmp_path / "encoder")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="encoder: the text encoder cannot be loaded") as caught:
        TextEncoder(folder, LENGTH)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[]", "null"])
def test_a_config_that_is_no_object_is_named(name, content, tmp_path):
    folder = save_encoder("bert", tmp_path / "encoder")
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"encoder: .* cannot be loaded \({name} must hold a JSON object\)$"):
        TextEncoder(folder, LENGTH)


def test_another_kind_of_model_is_one_line_that_lists_the_known(tmp_path):
    folder = save_encoder("bert", tmp_path / "encoder")
    transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r'cannot be loaded \(.*"gpt2".*BERT-type.*T5.*CLIP') as caught:
        TextEncoder(folder, LENGTH)
    assert len(str(caught.value).splitlines()) == 1
    assert "qwen3" in str(caught.value)


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_that_comes_with_an_encoder_is_not_run(part, tmp_path, monkeypatch):
    folder = save_encoder("bert", tmp_path / "encoder")
    if part == "model":
        plant(folder, "config.json", {"AutoConfig": "planted.C", "AutoModel": "planted.M"}, tmp_path / "ran")
    else:
        plant(folder, "tokenizer_config.json", {"AutoTokenizer": [None, "planted.T"]}, tmp_path / "ran")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    with contextlib.suppress(CheckpointError):  # or transformers has a class of its own for it
        TextEncoder(folder, LENGTH)
    assert not (tmp_path / "ran").exists()


def test_a_copy_elsewhere_is_the_same_encoder(tmp_path):
    folder = save_encoder("clip", tmp_path / "one")
    shutil.copytree(folder, tmp_path / "two")
    assert TextEncoder(folder, LENGTH).identity() == TextEncoder(tmp_path / "two", LENGTH).identity()
