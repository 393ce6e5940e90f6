"""Tokenizer evaluation: complete results, floors at a stated N, a perfect and a real tokenizer."""

import json
from types import SimpleNamespace

import pytest
import torch

from wvq.data.pixels import to_uint8
from wvq.errors import ConfigError, DataError
from wvq.eval.reconstruction import evaluate_reconstruction
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel


class PerfectTokenizer(torch.nn.Module):
    """Remembers the batch it encoded: its reconstructions are exact."""

    config = SimpleNamespace(image_size=16, num_codes=8, num_groups=1, grid=(4, 4), averaging_decay=0.9)
    config.scale_shapes = []
    quantizer = SimpleNamespace(measurements=lambda device: [])
    config.identity = dict
    device = torch.device("cpu")
    dtype = torch.float32

    def encode(self, pixel_values):
        self.pixels = pixel_values
        features = torch.zeros(len(pixel_values), 2, 4, 4)
        codes = torch.arange(16).view(1, 4, 4).expand(len(pixel_values), -1, -1) % 8
        return SimpleNamespace(codes=codes, features=features, quantized=features)

    def decode(self, quantized):
        return self.pixels

    def decode_codes(self, codes):
        return self.pixels


@pytest.fixture
def tiny_tokenizer():
    torch.manual_seed(0)
    config = WassersteinVQConfig(
        image_size=16,
        base_channels=32,
        channel_multipliers=[1, 1],
        num_res_blocks=1,
        attention=False,
        num_codes=16,
        code_dim=4,
    )
    return WassersteinVQModel(config)


def test_a_perfect_tokenizer_scores_zero(projection, pictures, picture_set):
    data = picture_set(pictures(21))
    result = evaluate_reconstruction(PerfectTokenizer(), data, projection, batch_size=8, progress=False)
    metrics, floor = result["metrics"], result["floor"]
    assert metrics["fd_projection"] == pytest.approx(0, abs=1e-4)
    # On reconstructions that equal the originals, half against half is the floor itself.
    assert metrics["fd_projection_at_floor_n"] == pytest.approx(floor["fd_projection"])
    assert metrics["kd_projection_at_floor_n"] == pytest.approx(floor["kd_projection"])
    assert floor["fd_projection"] > 0
    assert (result["num_images"], result["num_reference"], result["num_floor"]) == (21, 21, 10)
    assert result["num_tokens"] == 21 * 16
    assert metrics["utilization"] == 1
    assert any("floor: N = 10 is below the 12" in line for line in result["warnings"])


def test_a_real_tokenizer_gives_a_complete_result(tiny_tokenizer, projection, pictures, picture_set):
    tiny_tokenizer.train()
    data = picture_set(pictures(12), crop_recipe="random(0.8)")
    result = evaluate_reconstruction(tiny_tokenizer, data, projection, batch_size=5, progress=False)
    assert result["kind"] == "reconstruction"
    assert {"quantization_error", "utilization", "perplexity", "psnr_rgb", "psnr_y", "ssim"} < set(result["metrics"])
    assert result["metrics"]["fd_projection"] > 0
    assert result["settings"]["reference"]["crop"] == "center"
    assert result["settings"]["feature_network"] == "projection"
    json.dumps(result)
    again = evaluate_reconstruction(tiny_tokenizer, data, projection, batch_size=12, progress=False)
    assert again["metrics"] == pytest.approx(result["metrics"], rel=1e-3, abs=1e-4)


def test_bad_sets_are_refused(projection, pictures, picture_set):
    with pytest.raises(DataError, match="at least 4"):
        evaluate_reconstruction(PerfectTokenizer(), picture_set(pictures(3)), projection)
    with pytest.raises(DataError, match="image_size: the pictures have 32 px, the tokenizer needs 16"):
        evaluate_reconstruction(PerfectTokenizer(), picture_set(pictures(4, size=32)), projection)


def test_unreadable_pictures_are_left_out_counted_and_named(tiny_tokenizer, projection, pictures, picture_set):
    images, broken = pictures(20), (3, 11)
    with pytest.warns(UserWarning, match=r"2 of 20 pictures cannot be read: 3\.png .* left out of evaluation"):
        result = evaluate_reconstruction(tiny_tokenizer, picture_set(images, broken=broken), projection, progress=False)
    kept = [index for index in range(20) if index not in broken]
    whole = evaluate_reconstruction(tiny_tokenizer, picture_set(images[kept]), projection, progress=False)
    assert (result["num_images"], result["num_reference"], result["num_unreadable"]) == (18, 18, 2)
    assert result["metrics"] == whole["metrics"]
    assert result["settings"] == whole["settings"]
    assert any(line.startswith("2 of 20 pictures cannot be read: ") for line in result["warnings"])


def test_too_few_readable_pictures(tiny_tokenizer, projection, pictures, picture_set):
    data = picture_set(pictures(6), broken=(0, 1, 2))
    with pytest.warns(UserWarning, match="3 of 6"), pytest.raises(DataError, match="can be read, not 3"):
        evaluate_reconstruction(tiny_tokenizer, data, projection, progress=False)


class MeanDifference(torch.nn.Module):
    """Stands in for LPIPS: a mean over the batch, of pictures in [-1, 1]."""

    def forward(self, pictures, references):
        assert pictures.abs().max() <= 1
        return (pictures - references).abs().mean()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_lpips_is_the_mean_over_pictures(tiny_tokenizer, projection, pictures, picture_set, batch_size):
    data = picture_set(pictures(9))
    options = {"feature_network": projection, "batch_size": batch_size, "progress": False}
    metrics = evaluate_reconstruction(tiny_tokenizer, data, lpips=MeanDifference(), **options)["metrics"]
    pixels = torch.stack([data[index]["pixel_values"] for index in range(9)])
    drawn = to_uint8(tiny_tokenizer.decode(tiny_tokenizer.encode(pixels).quantized)).float() / 127.5 - 1
    assert metrics["lpips"] == pytest.approx(float((drawn - pixels).abs().mean()), rel=1e-4)
    assert "lpips" not in evaluate_reconstruction(tiny_tokenizer, data, **options)["metrics"]


def test_training_pictures_are_refused_or_marked(tiny_tokenizer, projection, pictures, picture_set):
    data, options = picture_set(pictures(9)), {"feature_network": projection, "progress": False}
    with pytest.raises(ConfigError, match="reconstruction takes a validation reference, and this one is train"):
        evaluate_reconstruction(tiny_tokenizer, data, reference_kind="train", **options)
    result = evaluate_reconstruction(tiny_tokenizer, data, reference_kind="train", force_reference=True, **options)
    assert result["settings"]["reference"]["forced"]
    assert "training pictures: not comparable" in result["warnings"][0]


def test_distances_over_inception_go_by_the_fields_names(tiny_tokenizer, projection_with_logits, pictures, picture_set):
    projection_with_logits.name = "inception"
    result = evaluate_reconstruction(
        tiny_tokenizer, picture_set(pictures(9)), feature_network=projection_with_logits, progress=False
    )
    assert {"rfid", "rkid", "rfid_at_floor_n"} <= set(result["metrics"])
    assert set(result["floor"]) == {"rfid", "rkid"}
