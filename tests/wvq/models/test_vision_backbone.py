"""VisionBackbone on tiny random models: hidden states as maps, resizing, normalisation, folders that are refused."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
)

from tests.tiny import plant, save_text_encoder
from tests.vision import save_convnext, save_vit
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.files.names import CHECKSUMS_NAME
from wvq.models.networks import VisionBackbone


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def convnext_dir(tmp_path_factory):
    return save_convnext(tmp_path_factory.mktemp("convnext"))


def pictures(size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_maps_of_a_vit(vit_dir):
    backbone = VisionBackbone(vit_dir)
    assert backbone.layers == [1, 2, 3, 4]
    assert backbone.channels == [16] * 4
    maps = backbone(pictures())
    assert [tuple(each.shape) for each in maps] == [(2, 16, 4, 4)] * 4


def test_maps_are_the_patch_tokens_in_their_places_normalised_as_the_folder_says(vit_dir):
    model = AutoModel.from_pretrained(vit_dir).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    with torch.no_grad():
        tokens = model(((pictures() + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states
        (found,) = VisionBackbone(vit_dir, [2])(pictures())
    for row in range(4):
        for column in range(4):
            expected = tokens[2][:, 1 + 4 * row + column]
            torch.testing.assert_close(found[:, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_normalisation_without_a_preprocessor_file_is_that_of_imagenet(vit_dir, tmp_path):
    folder = shutil.copytree(vit_dir, tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    backbone = VisionBackbone(folder, [1])
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(backbone.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize("size", [16, 48])
def test_pictures_are_resized_to_the_size_of_the_model(vit_dir, size):
    backbone = VisionBackbone(vit_dir, [0, 4])
    resized = F.interpolate(pictures(size), (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(backbone(pictures(size)), backbone(resized))


def test_maps_of_a_convnext(convnext_dir):
    backbone = VisionBackbone(convnext_dir)
    assert backbone.layers == [1, 2, 3, 4]
    assert backbone.channels == [4, 6, 8, 12]
    maps = backbone(pictures(64))
    assert [tuple(each.shape) for each in maps] == [(2, 4, 16, 16), (2, 6, 8, 8), (2, 8, 4, 4), (2, 12, 2, 2)]


def test_class_and_register_tokens_are_left_out(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_register_tokens": 4}
    torch.manual_seed(5)
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=32, patch_size=8, **sizes)).eval()
    model.save_pretrained(tmp_path)
    backbone = VisionBackbone(tmp_path, [2])
    (found,) = backbone(pictures())
    pixels = ((pictures() + 1) / 2 - backbone.mean) / backbone.std
    with torch.no_grad():
        tokens = model(pixels, output_hidden_states=True).hidden_states[2]
    assert tokens.shape[1] == 1 + 4 + 16
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens[:, 5:], rtol=1e-4, atol=1e-5)


def test_layers_are_chosen_in_the_order_given(convnext_dir):
    backbone = VisionBackbone(convnext_dir, [4, 2])
    assert backbone.channels == [12, 6]
    assert [each.shape[1] for each in backbone(pictures(64))] == [12, 6]


def test_frozen_in_eval_mode_and_gradients_reach_the_pictures(vit_dir):
    backbone = VisionBackbone(vit_dir).train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    x = pictures().requires_grad_()
    sum(each.square().sum() for each in backbone(x)).backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_each_picture_alone_gives_what_it_gives_in_a_batch(vit_dir):
    backbone = VisionBackbone(vit_dir)
    for alone, joined in zip(backbone(pictures()[1:]), backbone(pictures()), strict=True):
        torch.testing.assert_close(alone, joined[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [[1, 5], [-1]])
def test_a_layer_out_of_range_is_refused(vit_dir, layers):
    with pytest.raises(ConfigError, match=rf"^layer {layers[-1]} of .* is out of range: its hidden states are 0 to 4$"):
        VisionBackbone(vit_dir, layers)


def refused(folder, kind=CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        VisionBackbone(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    assert "no such vision model folder" in refused(tmp_path / "none")


def test_a_hub_id_offline_is_one_line():
    assert refused("owner/no-such-model", DownloadError).startswith('"owner/no-such-model" is no local folder')


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_damaged_weights_are_refused(vit_dir, tmp_path, damage):
    folder = shutil.copytree(vit_dir, tmp_path / "vit")
    file = folder / "model.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100] if damage == "cut" else b"")
    assert str(folder) in refused(folder)


def test_weights_that_do_not_fill_the_model_are_refused(vit_dir, tmp_path):
    """transformers would draw the missing ones at random, and only warn."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(vit_dir, tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.2." not in name and "layers.2." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 3}, {"qkv_bias": False}])
def test_weights_that_the_config_has_no_place_for_are_refused(fields, vit_dir, tmp_path):
    """transformers would leave them out and give the states of another network."""
    folder = shutil.copytree(vit_dir, tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    assert "weights of the vision model are more than its config has a place for (" in refused(folder)


@pytest.mark.parametrize("extra", [{}, {"num_hidden_layers": 1}])
def test_heads_of_other_tasks_are_nobodys_concern_and_layers_are(extra, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(5)
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | extra))
    if extra:
        assert "more than its config has a place for" in refused(tmp_path)
    else:
        assert VisionBackbone(tmp_path, [2]).channels == [16]


def test_weights_that_are_not_those_of_the_checksums_are_refused(vit_dir, tmp_path):
    folder = shutil.copytree(vit_dir, tmp_path / "vit")
    (folder / CHECKSUMS_NAME).write_text(json.dumps({"model.safetensors": "0" * 64}))
    assert "is not the file that was saved" in refused(folder)


def test_a_damaged_preprocessor_file_is_refused(vit_dir, tmp_path):
    folder = shutil.copytree(vit_dir, tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text("{", encoding="utf-8")
    assert "preprocessor_config.json" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ["[]", "null"])
def test_a_config_that_is_no_object_is_named(name, content, vit_dir, tmp_path):
    folder = shutil.copytree(vit_dir, tmp_path / "vit")
    (folder / name).write_text(content, encoding="utf-8")
    assert f"{name} must hold a JSON object" in refused(folder)


@pytest.mark.parametrize("values", [{"image_mean": None}, {"image_mean": "a"}, {"image_std": [1, 0, 1]}])
def test_a_normalisation_of_other_values_is_refused(values, vit_dir, tmp_path):
    folder = shutil.copytree(vit_dir, tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    assert f"preprocessor_config.json: {next(iter(values))} must be three numbers, each " in refused(folder)


def test_a_model_of_text_is_refused(tmp_path):
    folder = save_text_encoder(tmp_path / "bert")
    assert str(folder) in refused(folder)


def test_code_that_comes_with_a_model_is_not_run(tmp_path, monkeypatch):
    plant(tmp_path / "model", "config.json", {"AutoConfig": "planted.C", "AutoModel": "planted.M"}, tmp_path / "ran")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    assert str(tmp_path) in refused(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}), encoding="utf-8")
    assert str(tmp_path) in refused(tmp_path)
