"""The CLIP score is the cosine of both embeddings, of any CLIP model in a folder; other folders are refused."""

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from tests.tiny import plant, save_text_encoder
from wvq.errors import CheckpointError, DownloadError
from wvq.eval.features.clip_score import CLIPScore


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = AutoTokenizer.from_pretrained(save_text_encoder(folder / "encoder"))
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 12, "eos_token_id": tokenizer.sep_token_id}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder / "clip")
    return folder / "clip"


def test_scores_are_those_of_each_pair(clip_dir, pictures):
    score = CLIPScore(clip_dir)
    images, texts = pictures(4, size=24), ["red circle", "a blue cross on white", "green", "red circle"]
    found = score(images, texts)
    assert found.shape == (4,)
    assert ((found >= 0) & (found <= 100)).all()
    assert found.unique().numel() > 1
    for index in range(4):
        alone = score(images[index : index + 1], texts[index : index + 1])[0]
        torch.testing.assert_close(alone, found[index], rtol=1e-4, atol=0)  # a batch rounds otherwise than its parts
    assert score.description()["clip_sha256"] == CLIPScore(clip_dir).sha256


def test_long_texts_are_cut(clip_dir, pictures):
    assert CLIPScore(clip_dir)(pictures(1), ["red circle " * 40]).shape == (1,)


def test_code_that_comes_with_a_model_is_not_run(clip_dir, tmp_path, monkeypatch):
    folder = shutil.copytree(clip_dir, tmp_path / "clip")
    plant(folder, "preprocessor_config.json", {"AutoImageProcessor": "planted.P"}, tmp_path / "ran")
    (folder / "processor_config.json").unlink(missing_ok=True)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    with contextlib.suppress(CheckpointError):  # or the model's own processor is taken
        CLIPScore(folder)
    assert not (tmp_path / "ran").exists()


def refused(folder, kind=CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        CLIPScore(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_folders_and_unreachable_ids(tmp_path, tiny_tokenizer_dir):
    assert refused(tmp_path).startswith(f"clip: {tmp_path} does not load as a CLIP model (")
    assert str(tiny_tokenizer_dir) in refused(tiny_tokenizer_dir)
    assert refused("owner/name", DownloadError).startswith('clip: "owner/name" is no local folder and could not be')


def test_a_model_with_missing_weights_is_refused(clip_dir, tmp_path):
    """transformers would draw them at random, and the score would be that of nothing."""
    folder = shutil.copytree(clip_dir, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name != "visual_projection.weight"}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    missing = "weights of the CLIP model are missing (visual_projection.weight is the first of 1)"
    assert refused(folder) == f"clip: {folder}: {missing}"


def test_a_config_with_fewer_layers_than_the_weights_is_refused(clip_dir, tmp_path):
    folder = shutil.copytree(clip_dir, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    assert "weights of the CLIP model are more than its config has a place for (text_model.encoder" in refused(folder)


def test_pickled_weights_are_not_loaded(clip_dir, tmp_path):
    folder = shutil.copytree(clip_dir, tmp_path / "clip")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "does not load as a CLIP model" in refused(folder)


@pytest.mark.parametrize("pattern", ["tokenizer*.json", "*processor*.json"])
def test_missing_processors_are_refused(pattern, clip_dir, tmp_path):
    folder = shutil.copytree(clip_dir, tmp_path / "clip")
    files = list(folder.glob(pattern))
    assert files
    for file in files:
        file.unlink()
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_a_config_that_is_no_object_is_named(name, clip_dir, tmp_path):
    folder = shutil.copytree(clip_dir, tmp_path / "clip")
    (folder / name).write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"^clip: .*\({name} must hold a JSON object\)$"):
        CLIPScore(folder)
