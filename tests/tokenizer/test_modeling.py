"""The tokenizer: shapes, round trips, saving and strict loading, the same codes for any batch size."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from wvq.errors import CheckpointError, ConfigError, DataError, DownloadError, WVQError
from wvq.files.names import CHECKSUMS_NAME
from wvq.models.pretrained import weights_hash
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel

TINY = {
    "image_size": 16,
    "patch_size": 2,
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "attention": False,
    "num_codes": 32,
    "code_dim": 4,
    "quantizer": "sliced",
}


def make(spread=True, **fields):
    torch.manual_seed(0)
    model = WassersteinVQModel(WassersteinVQConfig(**{**TINY, **fields})).eval()
    if spread:  # a fresh codebook is nearly a point: too easy, and too hard, a test for the search
        torch.nn.init.normal_(model.quantizer.codebook, std=0.5)
    return model


def pictures(count=3, size=16, channels=3, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def saved(tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("fields", "grid"),
    [
        ({}, (4, 4)),
        ({"patch_size": 1}, (8, 8)),
        ({"patch_size": 4, "channel_multipliers": [1]}, (4, 4)),
        ({"attention": True, "channel_multipliers": [1, 1.5, 2], "num_res_blocks": 2}, (2, 2)),
        ({"image_size": 24, "base_channels": 6, "dropout": 0.1}, (6, 6)),
        ({"in_channels": 1, "code_dim": 1, "num_codes": 1}, (4, 4)),
    ],
)
@torch.no_grad()
def test_shapes(fields, grid):
    model = make(**fields)
    config, pixels = model.config, pictures(2, fields.get("image_size", 16), fields.get("in_channels", 3))
    assert config.grid == grid
    output = model(pixels)
    assert output.reconstruction.shape == pixels.shape
    assert output.codes.shape == (2, *grid)
    assert output.quantizer_loss.shape == ()
    encoded = model.encode(pixels)
    assert encoded.features.shape == encoded.quantized.shape == (2, config.code_dim, *grid)
    assert torch.equal(encoded.codes, output.codes)
    decoded = model.decode_codes(encoded.codes)
    assert decoded.shape == pixels.shape
    assert decoded.abs().max() <= 1


@torch.no_grad()
def test_decoding_codes_equals_the_clamped_reconstruction():
    model = make()
    with torch.no_grad():
        model.decoder[-2].bias += 0.9  # so that there is something to clamp
    pixels = pictures()
    reconstruction, encoded = model(pixels).reconstruction, model.encode(pixels)
    assert reconstruction.max() > 1
    assert torch.equal(model.decode(encoded.quantized), reconstruction.clamp(-1, 1))
    assert torch.equal(model.decode_codes(encoded.codes), reconstruction.clamp(-1, 1))


@torch.no_grad()
def test_a_batch_equals_single_calls():
    model, pixels = make(attention=True), pictures(7)
    codes = model.encode(pixels).codes
    assert len(codes.unique()) > 5
    singles = torch.cat([model.encode(pixel[None]).codes for pixel in pixels])
    assert torch.equal(codes, singles)
    decoded = torch.cat([model.decode_codes(code[None]) for code in codes])
    torch.testing.assert_close(model.decode_codes(codes), decoded, rtol=0, atol=1e-5)


@torch.no_grad()
def test_fixed_values_at_a_fixed_seed():
    model = make(attention=True)
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    encoded = model.encode(pixels)
    torch.testing.assert_close(
        encoded.features[0, :2, :2, 0],
        torch.tensor(FEATURES),
        rtol=0,
        atol=1e-3,
        msg=str(encoded.features[0, :2, :2, 0]),
    )
    decoded = model.decode_codes(encoded.codes)[0, 0, 4:7, 4:7]
    torch.testing.assert_close(decoded, torch.tensor(PIXELS), rtol=0, atol=1e-3, msg=str(decoded))


FEATURES = [[0.0105, 0.2319], [-0.0083, 0.6559]]
PIXELS = [[-0.2425, 0.0218, 0.7570], [-0.3663, 0.0123, 0.2465], [-0.4172, -0.0626, 0.4574]]


def test_every_parameter_is_trained():
    model = make().train()
    output = model(pictures(), update_statistics=True)
    (output.reconstruction.square().mean() + output.quantizer_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_the_codebook_is_its_own_group():
    model = make()
    assert [p.shape for p in model.codebook_parameters()] == [(32, 4)]


# ---- sizes


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 3, 16, 24), (1, 1, 16, 16), (3, 16, 16)])
def test_pictures_of_another_size_are_one_clear_error(shape):
    model = make()
    for call in (model, model.encode):
        with pytest.raises(DataError, match=r"pixel_values must be \(B, 3, 16, 16\) .*data.image_size") as error:
            call(torch.zeros(shape))
        assert "\n" not in str(error.value)


# ---- configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_code": 8}, r'has no field "num_code" \(did you mean "num_codes"\?\)'),
        ({"num_codes": 0}, "num_codes must be an integer of at least 1, got 0"),
        ({"num_codes": 2**31}, "num_codes must be below"),
        ({"num_codes": 32.5}, "num_codes must be an integer"),
        ({"code_dim": True}, "code_dim must be an integer"),
        ({"image_size": "large"}, "image_size must be an integer"),
        ({"image_size": 18}, "image_size must be a multiple of the downsampling factor 4, got 18"),
        ({"channel_multipliers": []}, "channel_multipliers must be a list of positive numbers"),
        ({"channel_multipliers": [1, -1]}, "channel_multipliers must be a list"),
        ({"channel_multipliers": 2}, "channel_multipliers must be a list"),
        ({"class_names": 3}, "class_names must be a list"),
        ({"class_names": [None]}, "class_names must be a list"),
        ({"attention": "no"}, "attention must be true, false or middle"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"downsample": "none"}, "downsample must be one of symmetric, asymmetric"),
        ({"end_kernel": 5}, "end_kernel must be one of 1, 3"),
        ({"latent_channels": 0}, "latent_channels must be an integer of at least 1, or null"),
        ({"latent_kernel": 3}, "latent_kernel must be 1 where latent_channels is null"),
        ({"pixel_range": "bytes"}, "pixel_range must be one of signed, unit"),
        ({"residual_projector": 0}, "residual_projector must be an integer of at least 1, or null"),
        ({"commitment_weight": -0.1}, "commitment_weight must be a number of at least 0"),
        ({"alignment_weight": float("nan")}, "alignment_weight must be a number of at least 0"),
        ({"window_size": 0}, "window_size must be an integer"),
        ({"quantizer": "vanila"}, "vanilla"),
        ({"quantizer": ["vanilla"]}, "quantizer"),
    ],
)
def test_bad_fields_are_one_clear_error(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        WassersteinVQConfig(**{**TINY, **fields})
    assert "\n" not in str(error.value)


def test_config_round_trip(tmp_path):
    config = WassersteinVQConfig(**TINY, class_names=["a", "b"], commitment_weight=0.3)
    config.save_pretrained(tmp_path)
    loaded = WassersteinVQConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.class_names == ["a", "b"]


# ---- saving and loading


@torch.no_grad()
def test_a_saved_model_comes_back_exactly(saved):
    model, folder = saved
    loaded = WassersteinVQModel.from_pretrained(folder)
    assert not loaded.training
    assert same(model, loaded)
    output, expected = loaded.encode(pictures()), model.encode(pictures())
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(loaded.decode(output.quantized), model.decode(expected.quantized))
    loaded.save_pretrained(folder.parent / "again")
    assert same(model, WassersteinVQModel.from_pretrained(folder.parent / "again"))


def test_loads_from_a_subfolder(saved):
    model, folder = saved
    assert same(model, WassersteinVQModel.from_pretrained(folder.parent, subfolder="model"))


def test_is_registered_with_the_auto_classes(saved):
    model, folder = saved
    assert isinstance(AutoConfig.from_pretrained(folder), WassersteinVQConfig)
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is WassersteinVQModel
    assert same(model, loaded)


@torch.no_grad()
def test_bfloat16_leaves_the_codebook_in_float32(saved):
    model, folder = saved
    loaded = WassersteinVQModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.quantizer.codebook.dtype == torch.float32
    assert torch.equal(loaded.quantizer.codebook, model.quantizer.codebook)
    assert next(loaded.decoder.parameters()).dtype == torch.bfloat16
    pixels = pictures().bfloat16()
    encoded = loaded.encode(pixels)
    assert loaded.decode_codes(encoded.codes).dtype == torch.bfloat16
    assert torch.equal(loaded.decode(encoded.quantized), loaded.decode_codes(encoded.codes))
    assert loaded(pixels).reconstruction.dtype == torch.bfloat16


CASTS = {
    "loaded": lambda model, folder, dtype: WassersteinVQModel.from_pretrained(folder, dtype=dtype),
    "to": lambda model, folder, dtype: WassersteinVQModel.from_pretrained(folder).to(dtype),
    "to by name": lambda model, folder, dtype: WassersteinVQModel.from_pretrained(folder).to("cpu", dtype=dtype),
}


@torch.no_grad()
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_keeps_the_codebook_and_what_codes_were_made_before(cast, dtype, saved, tmp_path):
    model, folder = saved
    half = CASTS[cast](model, folder, dtype)
    assert half.dtype == dtype
    assert torch.equal(half.quantizer.codebook, model.quantizer.codebook)
    trained = weights_hash(model, without=("decoder.", "projector.out_"))  # as headers of earlier versions have it
    half.save_pretrained(tmp_path / "half")
    again = WassersteinVQModel.from_pretrained(tmp_path / "half")
    for one in (half, again, again.to(torch.float32)):
        assert one.made(model.codes_hash())
        assert one.made(trained)
        assert one.made(one.codes_hash())
    assert not model.made(half.codes_hash())
    with torch.no_grad():
        next(half.encoder.parameters()).add_(1)
    assert not half.made(model.codes_hash())  # trained since
    assert half.to(torch.float64).made(CASTS["to"](model, folder, dtype).codes_hash()) is False


def test_half_and_float_are_casts(saved):
    model, folder = saved
    half = WassersteinVQModel.from_pretrained(folder).half()
    assert (half.dtype, half.quantizer.codebook.dtype) == (torch.float16, torch.float32)
    assert half.config.cast_hashes is not None
    assert half.float().made(model.codes_hash())
    assert WassersteinVQModel.from_pretrained(folder).double().float().config.cast_hashes is None  # nothing was lost


def test_a_tokenizer_without_a_cast_is_saved_as_before(saved):
    assert "cast_hashes" not in json.loads((saved[1] / "config.json").read_text())


@torch.no_grad()
@pytest.mark.parametrize("of_model", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_pictures", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_pictures_of_any_floating_type_are_taken(of_model, of_pictures, saved):
    model = WassersteinVQModel.from_pretrained(saved[1], dtype=of_model)
    pixels = pictures().to(of_pictures)
    codes = model.encode(pixels).codes
    assert torch.equal(codes, model.encode(pixels.to(of_model)).codes)
    assert torch.equal(model(pixels).codes, codes)


def test_pictures_in_bytes_or_on_another_device_are_one_clear_error(saved):
    model, _ = saved
    with pytest.raises(DataError, match=r"pixel_values are torch.uint8, not floats in \[-1, 1\]; ImageProcessor makes"):
        model.encode(torch.zeros(pictures().shape, dtype=torch.uint8))
    with pytest.raises(DataError, match="pixel_values are on meta, the model is on cpu; move them with"):
        model(pictures().to("meta"))
    with pytest.raises(DataError, match="codes are on meta, the model is on cpu"):
        model.decode_codes(torch.zeros(1, *model.config.grid, dtype=torch.int64, device="meta"))
    with pytest.raises(DataError, match=r"codes must be integers, got torch\.float32"):
        model.decode_codes(torch.zeros(1, *model.config.grid))


@torch.no_grad()
def test_codes_of_any_integer_type_are_decoded(saved):
    model, _ = saved
    codes = model.encode(pictures()).codes
    for dtype in (torch.int32, torch.uint16, torch.uint8):
        assert torch.equal(model.decode_codes(codes.to(dtype)), model.decode_codes(codes))


@pytest.mark.parametrize("wrong", [-1, 32])
def test_codes_out_of_range_are_one_clear_error(saved, wrong):
    model, _ = saved
    codes = torch.full((1, *model.config.grid), wrong)
    with pytest.raises(DataError, match=rf"codes must be in \[0, {model.config.num_codes}\), got {wrong} to {wrong}"):
        model.decode_codes(codes)


def damage(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


DAMAGES = {
    "missing weight": (lambda f: damage(f, lambda w: w.pop("quantizer.codebook")), r"1 missing \(quantizer.codebook\)"),
    "extra weight": (lambda f: damage(f, lambda w: w.update(more=torch.zeros(1))), r"1 unexpected \(more\)"),
    "weight of another shape": (
        lambda f: damage(f, lambda w: w.update({"quantizer.codebook": torch.zeros(32, 5)})),
        "weights cannot be loaded|mismatched",
    ),
    "config of another size": (lambda f: write_config(f, num_codes=64), "weights cannot be loaded|mismatched"),
    "truncated weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "weights cannot be loaded",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "weights cannot be loaded"),
    "pointer of large-file storage": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "weights cannot be loaded",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "config that is a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "config of another model": (lambda f: write_config(f, model_type="bert"), 'type "bert", not "wasserstein_vq"'),
    "unknown field": (lambda f: write_config(f, num_cods=3), 'no field "num_cods"'),
    "field out of range": (lambda f: write_config(f, dropout=2), "dropout must be in"),
    "field of another type": (lambda f: write_config(f, channel_multipliers=2), "channel_multipliers must be"),
}


@pytest.mark.parametrize("damaged", DAMAGES)
def test_a_damaged_folder_is_one_clear_error(saved, damaged):
    _, folder = saved
    spoil, message = DAMAGES[damaged]
    (folder / CHECKSUMS_NAME).unlink()  # they would find most of it first
    spoil(folder)
    with pytest.raises(WVQError, match=message) as error:
        WassersteinVQModel.from_pretrained(folder)
    assert isinstance(error.value, CheckpointError | ConfigError)
    assert str(folder) in str(error.value) or isinstance(error.value, ConfigError)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_not_taken_for_a_hub_id(saved, tmp_path):
    for path in (tmp_path / "none", f"{tmp_path}/none/deeper", "./none", "no_such_folder"):
        with pytest.raises(CheckpointError, match="no such tokenizer folder"):
            WassersteinVQModel.from_pretrained(path)
    with pytest.raises(CheckpointError, match="is a file"):
        WassersteinVQModel.from_pretrained(saved[1] / "config.json")


def test_a_hub_id_without_network_is_one_clear_error():
    with pytest.raises(DownloadError, match=r'"somebody/some-tokenizer" is no local folder') as error:
        WassersteinVQModel.from_pretrained("somebody/some-tokenizer")
    assert "\n" not in str(error.value)


def test_a_damaged_folder_does_not_spoil_a_copy(saved):
    model, folder = saved
    shutil.copytree(folder, folder.parent / "copy")
    damage(folder, lambda weights: weights.pop("quantizer.codebook"))
    with pytest.raises(CheckpointError):
        WassersteinVQModel.from_pretrained(folder)
    assert same(model, WassersteinVQModel.from_pretrained(folder.parent / "copy"))
