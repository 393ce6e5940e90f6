"""Tokenizers with one code a position, several codebooks, or several scales: flat codes, saving, caches, evaluation."""

import pytest
import torch

from tests.tiny import make_generator
from wvq.app.describe import describe
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.data.dataset import load_images
from wvq.data.pixels import to_uint8
from wvq.errors import CacheError, ConfigError, DataError
from wvq.generator.kinds import CONFIGS, read_generator_config
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.generator.train import train_generator
from wvq.models.pretrained import weights_hash
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.train import TrainConfig
from wvq.tokenizer import export
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.picture_metrics import psnr
from wvq.tokenizer.quantizers.alignment import gaussian_wasserstein
from wvq.tokenizer.recipes import ExportRecipe
from wvq.tokenizer.task import reconstruction_sheet
from wvq.tokenizer.train import train_tokenizer

FIELDS = {"grid": {}, "product": {"num_groups": 2}, "multi-scale": {"scales": [1, 2, 4]}}
SHAPES = {"grid": (4, 4), "product": (4, 4, 2), "multi-scale": (21,)}
LENGTHS = {"grid": 16, "product": 32, "multi-scale": 21}
SHAPE = {"image_size": 16, "patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1}
SHAPE |= {"attention": False, "num_codes": 32, "code_dim": 4}


@pytest.fixture(params=FIELDS, scope="module")
def kind(request):
    return request.param


def make(kind, **fields):
    torch.manual_seed(0)
    model = WassersteinVQModel(WassersteinVQConfig(**{**SHAPE, **FIELDS[kind], **fields})).eval()
    for name, codebook in model.state_dict().items():
        if name.endswith("codebook"):
            codebook.normal_(0, 0.5)
    return model


def pictures(count=5, size=16, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- codes and pictures


@torch.no_grad()
def test_codes_decode_in_the_models_shape_and_flat(kind):
    model, pixels = make(kind), pictures()
    encoded = model.encode(pixels)
    assert encoded.codes.shape == (5, *SHAPES[kind])
    assert encoded.features.shape == encoded.quantized.shape == (5, 4, 4, 4)
    decoded = model.decode_codes(encoded.codes)
    assert torch.equal(decoded, model.decode_codes(encoded.codes.flatten(1)))
    assert torch.equal(decoded, model.decode(encoded.quantized))
    assert torch.equal(decoded, model(pixels).reconstruction.clamp(-1, 1))
    assert model.config.sequence_length == encoded.codes[0].numel() == LENGTHS[kind]


@torch.no_grad()
def test_a_batch_equals_single_calls(kind):
    model, pixels = make(kind), pictures(7)
    codes = model.encode(pixels).codes
    assert len(codes.unique()) > 5
    assert torch.equal(codes, torch.cat([model.encode(pixel[None]).codes for pixel in pixels]))


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 15), (2, 16), (2, 21), (2, 4, 4), (2, 4, 4, 2), (2, 3, 3)])
def test_codes_of_another_shape_are_one_clear_error(kind, shape):
    model, codes = make(kind), torch.zeros(shape, dtype=torch.int64)
    if shape[1:] in (SHAPES[kind], (LENGTHS[kind],)):
        assert model.decode_codes(codes).shape == (shape[0], 3, 16, 16)
        return
    for call in (model.decode_codes, model.decode_scales):
        with pytest.raises(DataError, match=r"^codes must be \(B, .*got \(") as error:
            call(codes)
        assert "\n" not in str(error.value)


@torch.no_grad()
def test_the_last_of_the_scales_is_the_whole_picture(kind):
    model = make(kind)
    codes = model.encode(pictures()).codes
    partial = model.decode_scales(codes)
    assert partial.shape == (5, 3 if kind == "multi-scale" else 1, 3, 16, 16)
    assert torch.equal(partial[:, -1], model.decode_codes(codes))
    if kind == "multi-scale":
        changed = codes.clone()
        changed[:, 5:] = (changed[:, 5:] + 1) % 32  # finer codes do not reach the coarser pictures
        other = model.decode_scales(changed)
        assert torch.equal(other[:, :2], partial[:, :2])
        assert not torch.equal(other[:, 2], partial[:, 2])


@torch.no_grad()
def test_codes_of_the_first_scales_alone_are_decoded_too():
    model = make("multi-scale")
    codes = model.encode(pictures()).codes
    partial = model.decode_scales(codes)
    for scale, length in enumerate((1, 5, 21)):
        assert torch.equal(model.decode_first_scales(codes[:, :length]), partial[:, scale])
    for other in (codes[:, :4], codes[0], codes[:, :0]):
        with pytest.raises(DataError, match=r"codes of the first scales must be \(B, n\), n one of \[1, 5, 21\], got"):
            model.decode_first_scales(other)


def test_a_sheet_shows_each_scale(kind):
    dataset = [{"pixel_values": picture} for picture in pictures(3)]
    sheet, cell = reconstruction_sheet(make(kind), dataset), 6 * 16 + 2 * 2  # enlarged, with its padding
    assert sheet.size == (3 * cell, (4 if kind == "multi-scale" else 2) * cell)


# ---- saving and loading


@torch.no_grad()
def test_a_saved_model_comes_back_exactly(kind, tmp_path):
    model, pixels = make(kind), pictures()
    model.save_pretrained(tmp_path)
    loaded = WassersteinVQModel.from_pretrained(tmp_path)
    assert loaded.config.code_layout == model.config.code_layout
    assert weights_hash(loaded) == weights_hash(model)
    codes = model.encode(pixels).codes
    assert torch.equal(loaded.encode(pixels).codes, codes)
    assert torch.equal(loaded.decode_scales(codes), model.decode_scales(codes))


@torch.no_grad()
def test_the_quantizer_stays_in_float32(tmp_path):
    model = make("multi-scale")
    model.save_pretrained(tmp_path)
    loaded = WassersteinVQModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.quantizer.parameters()} == {torch.float32}
    assert next(loaded.decoder.parameters()).dtype == torch.bfloat16
    encoded = loaded.encode(pictures().bfloat16())
    assert torch.equal(loaded.decode(encoded.quantized), loaded.decode_codes(encoded.codes))


def test_every_parameter_is_trained(kind):
    model = make(kind).train()
    output = model(pictures(), update_statistics=True)
    (output.reconstruction.square().mean() + output.quantizer_loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_convolutions_start_as_the_networks_and_train_with_it():
    model = make("multi-scale")
    bound = (9 * 4) ** -0.5
    for conv in model.quantizer.convs:
        assert 0.5 * bound < conv.weight.abs().max() <= bound
        assert not conv.bias.any()
    assert [p.shape for p in model.codebook_parameters()] == [(32, 4)]


# ---- trained, measured, exported


@pytest.fixture(scope="module")
def trained_dir(kind, tmp_path_factory, tiny_tokenizer_recipe):
    out = tmp_path_factory.mktemp("layout") / "tokenizer"
    train_tokenizer(tiny_tokenizer_recipe(out, model=FIELDS[kind]))
    return out


@pytest.fixture
def export_recipe(trained_dir, tmp_path, caption_folder, tiny_data):
    data = tiny_data(caption_folder, crop="random")
    return ExportRecipe(out=str(tmp_path / "codes"), tokenizer=str(trained_dir), data=data, num_crops=2)


@torch.no_grad()
def test_rows_are_the_flat_codes(kind, trained_dir, export_recipe):
    header = export_codes(export_recipe)
    model = WassersteinVQModel.from_pretrained(trained_dir)
    assert header == CodeHeader.read(export_recipe.out)
    assert header.layout == model.config.code_layout
    assert header.sequence_length == LENGTHS[kind]
    cache, validation = CodeDataset(export_recipe.out, "validation"), load_images(export_recipe.data).validation
    pixels = torch.stack([validation[i]["pixel_values"] for i in range(len(validation))])
    codes = cache.codes(range(len(cache)))
    assert torch.equal(codes, model.encode(pixels).codes.flatten(1))
    value = psnr(to_uint8(model.decode_codes(codes)), to_uint8(pixels)).mean().item()
    assert header.psnr_rgb["validation"] == pytest.approx(value, abs=1e-3)
    for folder in (export_recipe.out, trained_dir):
        words = {"grid": "4 x 4 a picture, K", "product": "4 x 4 a picture, 2 at each", "multi-scale": "sides 1, 2, 4 "}
        assert words[kind] in describe(folder)


def test_the_self_check_finds_rows_out_of_order(export_recipe, monkeypatch):
    codes = export._codes

    def rolled(*args):
        batch = codes(*args)
        return batch | {"codes": batch["codes"].roll(1, dims=0)}

    monkeypatch.setattr(export, "_codes", rolled)
    with pytest.raises(CacheError, match="out of order or damaged"):
        export_codes(export_recipe)


def test_a_generator_is_trained_over_codes_of_any_layout(kind, trained_dir, export_recipe, tmp_path):
    export_codes(export_recipe)
    size = {"hidden_size": 32, "num_layers": 1, "num_heads": 2}
    recipe = GeneratorRecipe(
        out=str(tmp_path / "run"),
        codes=export_recipe.out,
        tokenizer=str(trained_dir),
        model=size,
        condition=ConditionConfig(classes=False),
        train=TrainConfig(images=16, batch_size=16),
    )
    tokenizer = WassersteinVQModel.from_pretrained(trained_dir)
    train_generator(recipe, tokenizer)
    config = read_generator_config(tmp_path / "run" / "generator")
    assert type(config) is CONFIGS[kind]
    assert config.code_layout == tokenizer.config.code_layout


@torch.no_grad()
def test_evaluation_measures_each_scale(trained_dir, kind, export_recipe):
    model = WassersteinVQModel.from_pretrained(trained_dir)
    validation = load_images(export_recipe.data).validation
    figures = evaluate_tokenizer(model, validation, batch_size=5)
    names = {"utilization_per_scale", "perplexity_per_scale", "num_tokens_per_scale"}
    names |= {"alignment", "alignment_per_scale"}
    assert names & figures.keys() == (names if kind == "multi-scale" else set())
    encoded = model.encode(torch.stack([validation[i]["pixel_values"] for i in range(len(validation))]))
    error = (encoded.features - encoded.quantized).square().sum(1).mean().item()
    assert figures["quantization_error"] == pytest.approx(error, rel=1e-5)
    if kind != "multi-scale":
        return
    scales = encoded.codes.split([1, 4, 16], dim=1)
    assert figures["num_tokens_per_scale"] == [12, 48, 192]
    assert figures["num_tokens"] == 252
    assert figures["utilization_per_scale"] == pytest.approx([len(part.unique()) / 32 for part in scales])
    assert figures["utilization"] == pytest.approx(len(encoded.codes.unique()) / 32)
    parts = model.quantizer.residuals(encoded.features.permute(0, 2, 3, 1), encoded.codes)
    tokens = torch.cat(parts).double()
    codebook = model.quantizer.book.codebook
    whole = gaussian_wasserstein(tokens.mean(0), tokens.T.cov(correction=0), codebook).item()
    assert figures["alignment"] == pytest.approx(whole, rel=1e-4)
    assert len(figures["alignment_per_scale"]) == 3


def test_a_generator_of_grid_codes_fits_tokenizers_of_a_grid_alone(kind):
    if kind == "grid":
        ImageGenerationPipeline(make(kind), make_generator())
        return
    with pytest.raises(ConfigError, match=f"has {kind} codes"):
        ImageGenerationPipeline(make(kind), make_generator())
