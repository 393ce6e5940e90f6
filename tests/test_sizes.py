"""Pictures that are not square, and whole pictures on a ground, through both stages, evaluation and the pages."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from tests.drawings import write_letters
from wvq import CodeDataset, ImageGenerationPipeline, ImageProcessor, WassersteinVQModel
from wvq.app.cli import main
from wvq.app.describe import describe
from wvq.data.codes import CodeHeader
from wvq.data.dataset import load_images
from wvq.errors import ConfigError, DataError
from wvq.eval.features.networks import load_feature_network
from wvq.eval.real.dataset import dataset_features
from wvq.eval.recipes import GenerationEvaluation, ReconstructionEvaluation
from wvq.eval.run import run_generation_evaluation, run_reconstruction_evaluation
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.model_card import model_card
from wvq.settings.data import DataConfig
from wvq.settings.train import TrainConfig
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.recipes import DiscriminatorConfig, ExportRecipe
from wvq.tokenizer.task import reconstruction_sheet
from wvq.tokenizer.train import train_tokenizer

SIZE = [16, 24]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Wide and tall letters on white, in two class folders."""
    folder = tmp_path_factory.mktemp("letters")
    write_letters(folder)
    return folder


@pytest.fixture(scope="module")
def padded(letters):
    """A function that makes the settings of the letters, padded to 16 x 24 pixels, some fields changed."""

    def make(**changes) -> DataConfig:
        fields = {"image_size": SIZE, "fit": "pad", "min_crop_fraction": 0.75, "validation_fraction": 0.2, **changes}
        return DataConfig(path=str(letters), **fields)

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_tokenizer_recipe, padded):
    """Folder, recipe of the tokenizer and pipeline of a run on padded letters."""
    out = tmp_path_factory.mktemp("run")
    recipe = tiny_tokenizer_recipe(out / "tokenizer", train={"save_every": 320})
    recipe.data = padded(crop="random")
    train_tokenizer(recipe)
    export = ExportRecipe(out=str(out / "codes"), tokenizer=recipe.out, data=padded(crop="ten"), num_crops=10)
    export_codes(export)
    generator = GeneratorRecipe(
        out=str(out),
        codes=export.out,
        tokenizer=recipe.out,
        condition=ConditionConfig(text=False),
        model={"hidden_size": 32, "num_layers": 2, "num_heads": 2, "target_positions": True},
        train=TrainConfig(images=640, batch_size=32, learning_rate=3e-3),
    )
    result, pipe = train_pipeline(generator)
    assert result["bits_per_pixel"] == pytest.approx(result["loss"] * 24 / np.log(2) / (16 * 24))
    return out, recipe, pipe


# ---- both stages


def test_a_tokenizer_of_another_shape(run, padded):
    out, _, _ = run
    model, images = WassersteinVQModel.from_pretrained(out / "tokenizer"), load_images(padded())
    pixels = torch.stack([images.validation[i]["pixel_values"] for i in range(3)])
    assert pixels.shape == (3, 3, 16, 24)
    with torch.no_grad():
        codes = model.encode(pixels).codes
        assert codes.shape == (3, 4, 6)
        assert model.decode_codes(codes.flatten(1)).shape == pixels.shape
    saved = json.loads((out / "tokenizer" / "config.json").read_text())
    assert (saved["image_size"], saved["fit"], model.config.grid) == (SIZE, "pad", (4, 6))
    assert json.loads((out / "tokenizer" / "result.json").read_text())["ssim"] > 0
    assert "16 x 24 px, padded (auto)" in describe(out / "tokenizer")
    assert "4 x 6 a picture" in describe(out / "tokenizer")
    assert reconstruction_sheet(model, images.validation, 8).size == (8 * (4 * 24 + 4), 2 * (4 * 16 + 4))


def test_a_resumed_run_ends_as_the_uninterrupted_one(run, tmp_path):
    recipe = copy.deepcopy(run[1])
    shutil.copytree(recipe.out, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "training" / "checkpoints" / "000000000640")
    (tmp_path / "cut" / "model.safetensors").unlink()
    recipe.out = str(tmp_path / "cut")
    other = copy.deepcopy(recipe)
    other.data.fit = "crop"
    with pytest.raises(ConfigError, match=r"data\.fit"):
        train_tokenizer(other, resume=True)
    train_tokenizer(recipe, resume=True)
    whole, cut = (WassersteinVQModel.from_pretrained(folder) for folder in (run[0] / "tokenizer", recipe.out))
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), cut.parameters(), strict=True))


def test_ten_pads_of_each_picture_are_exported(run, padded):
    out, _, pipe = run
    header = CodeHeader.read(out / "codes")
    assert (header.image_size, header.grid) == (SIZE, [4, 6])
    assert header.crop_recipe == {"train": "ten(0.75), pad(auto)", "validation": "center, pad(auto)"}
    cache, train = CodeDataset(out / "codes"), load_images(padded(crop="ten")).train
    for version in (0, 3, 9):
        pixels = train[version * len(train) + 5, 5]["pixel_values"]
        with torch.no_grad():
            assert torch.equal(cache.codes([50 + version])[0], pipe.tokenizer.encode(pixels[None]).codes.flatten())


def test_samples_of_another_shape(run):
    out, _, pipe = run
    assert pipe.generator.config.grid == [4, 6]
    call = {"class_labels": ["A", "M"], "num_images": 4, "seed": 3}
    output = pipe(**call, output_type="pt")
    assert output.images.shape == (4, 3, 16, 24)
    assert output.codes.shape == (4, 4, 6)
    assert [image.size for image in pipe(**call).images] == [(24, 16)] * 4
    again = ImageGenerationPipeline.from_pretrained(out)
    assert np.array_equal(again(**call, output_type="np").images, pipe(**call, output_type="np").images)
    assert pipe(**call, height=16, width=24).images[0].size == (24, 16)
    with pytest.raises(ConfigError, match="16"):
        pipe(**call, height=24, width=16)
    fixed = torch.full((4, 6), -1)
    fixed[:2] = output.codes[0, :2]
    continued = pipe(**call, fixed_codes=fixed)
    assert (continued.codes[:, :2] == output.codes[0, :2]).all()
    assert "16 x 24 px, grid 4 x 6" in model_card(pipe)


def test_the_commands(run, padded, tmp_path, capsys):
    """The line that a stage prints for the next one holds the size; samples are drawn and described."""
    out, _, _ = run
    data = padded()
    words = [f"--data.path={data.path}", "--data.image_size=16x24", "--data.fit=pad", "--data.validation_fraction=.2"]
    main(["export-codes", f"--tokenizer={out / 'tokenizer'}", f"--out={tmp_path / 'codes'}", *words])
    main(["sample", str(out), "--num_images=3", "--seed=1", f"--out={tmp_path / 'samples'}"])
    with Image.open(tmp_path / "samples" / "000001.png") as image:
        assert image.size == (24, 16)
    main(["info", str(tmp_path / "codes")])
    assert "4 x 6 a picture" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["export-codes", f"--tokenizer={out / 'tokenizer'}", f"--out={tmp_path / 'no'}", words[0]])
    assert "data.image_size is 32, but the tokenizer" in capsys.readouterr().err


# ---- evaluation


def test_reconstructions_are_measured(run, padded, tmp_path):
    out, _, _ = run
    recipe = ReconstructionEvaluation(
        tokenizer=str(out / "tokenizer"),
        data=padded(),
        out=str(tmp_path / "reconstruction.json"),
        feature_network="efficientnet_lite0",
    )
    result = run_reconstruction_evaluation(recipe, progress=False)
    assert result["settings"]["reference"]["image_size"] == SIZE
    assert result["settings"]["reference"]["crop"] == "center, pad(auto)"
    assert "resize to 128 x 128 px, squeezed, " in result["settings"]["feature_network_input"]
    assert not [line for line in result["warnings"] if "data.fit" in line]
    assert (tmp_path / "reconstruction.html").exists()


def test_samples_are_measured(run, padded, tmp_path):
    out, _, _ = run
    recipe = GenerationEvaluation(
        pipeline=str(out),
        data=padded(fit="crop"),
        num_images=8,
        out=str(tmp_path / "generation.json"),
        feature_network="efficientnet_lite0",
        save_samples=str(tmp_path / "samples.npz"),
    )
    result = run_generation_evaluation(recipe, progress=False)
    assert result["settings"]["samples"]["image_size"] == result["settings"]["reference"]["image_size"] == SIZE
    assert any("was trained with data.fit pad and data.pad_color auto, and here it is data.fit crop" in line
               for line in result["warnings"])  # fmt: skip
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive["arr_0"].shape == (8, 16, 24, 3)
    archived = GenerationEvaluation(
        pipeline=str(out),
        reference=str(tmp_path / "samples.npz"),
        reference_kind="train",
        num_images=8,
        out=str(tmp_path / "again.json"),
        feature_network="efficientnet_lite0",
    )
    again = run_generation_evaluation(archived, progress=False)
    assert again["settings"]["reference"]["image_size"] == SIZE
    assert again["metrics"]["fd_efficientnet_lite0"] == pytest.approx(0, abs=1e-3)
    recipe.resize, recipe.out, recipe.save_samples = 24, str(tmp_path / "resized.json"), None
    with pytest.raises(ConfigError, match=r"^resize makes squares, and this pipeline draws 16 x 24 px; leave it out$"):
        run_generation_evaluation(recipe, progress=False)


def test_features_of_crops_pads_and_shapes_are_kept_apart(tmp_path):
    """Pictures of one colour have the same bytes in every shape, and are the same cropped and padded."""
    (tmp_path / "white").mkdir()
    for number in range(6):
        Image.new("RGB", (24, 24), "white").save(tmp_path / "white" / f"{number}.png")
    network, cache = load_feature_network("efficientnet_lite0"), tmp_path / "cache"
    for count, fields in enumerate(
        [{"image_size": [16, 24]}, {"image_size": [24, 16]}, {"image_size": [16, 24], "fit": "pad"}, {"image_size": 16},
         {"image_size": 16, "fit": "pad"}], 1
    ):  # fmt: skip
        images = load_images(DataConfig(path=str(tmp_path / "white"), validation_fraction=0.2, **fields)).train
        described = dataset_features(images, network, "train", cache=cache, progress=False).description()
        assert described["image_size"] == fields["image_size"]
        assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == count


# ---- the other layouts, losses, and what is refused


@pytest.mark.parametrize(("model", "shape"), [({"num_groups": 2}, (4, 6, 2)), ({"scales": [1, 2, 4]}, (2 + 6 + 24,))])
def test_products_and_scales_of_another_shape(model, shape, tmp_path, tiny_tokenizer_recipe, padded):
    recipe = tiny_tokenizer_recipe(tmp_path / "tokenizer", train={"images": 160}, model=model)
    recipe.data = padded()
    result = train_tokenizer(recipe)
    trained = WassersteinVQModel.from_pretrained(recipe.out)
    images = load_images(recipe.data).validation
    pixels = torch.stack([images[i]["pixel_values"] for i in range(len(images))])
    with torch.no_grad():
        codes = trained.encode(pixels).codes
        assert codes.shape == (len(images), *shape)
        assert trained.decode_scales(codes).shape[2:] == (3, 16, 24)
    assert result["num_tokens"] == (codes.numel() if len(shape) == 1 else len(images) * 24)
    if len(shape) == 1:
        assert result["num_tokens_per_scale"] == [len(images) * count for count in (2, 6, 24)]
    header = export_codes(ExportRecipe(str(tmp_path / "codes"), recipe.out, recipe.data))
    assert header.sequence_length == np.prod(shape)
    assert torch.equal(CodeDataset(tmp_path / "codes", "validation").codes(range(len(images))), codes.flatten(1))


@pytest.mark.parametrize("augment", [False, True])
def test_adversarial_training_of_another_shape(augment, tmp_path, tiny_tokenizer_recipe, padded):
    recipe = tiny_tokenizer_recipe(tmp_path / "tokenizer", train={"images": 32})
    recipe.data = padded()
    recipe.discriminator = DiscriminatorConfig(network="patchgan", base_channels=4, num_layers=2, augment=augment)
    assert train_tokenizer(recipe)["images"] == 32


def test_a_later_stage_with_another_fit_says_so(run, padded, tmp_path):
    out, _, _ = run
    recipe = ExportRecipe(str(tmp_path / "codes"), str(out / "tokenizer"), padded(pad_color="white"))
    expected = r"was trained with data\.fit pad and data\.pad_color auto, and here it is data\.fit pad .* white"
    with pytest.warns(UserWarning, match=expected):
        export_codes(recipe)
    recipe.data, recipe.out = padded(), str(tmp_path / "same")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_codes(recipe)


def test_the_processor_pads_as_the_tokenizer_was_trained(run, letters):
    out, _, _ = run
    processor = ImageProcessor.from_pretrained(out / "tokenizer")
    assert (processor.size, processor.fit, processor.pad_color) == (SIZE, "pad", "auto")
    images = load_images(DataConfig(path=str(letters), image_size=SIZE, fit="pad")).validation
    pixels = processor([images.picture(0), images.picture(1)]).pixel_values
    assert torch.equal(pixels, torch.stack([images[i]["pixel_values"] for i in range(2)]))
    with pytest.raises(ConfigError, match=r"^ImageProcessor.fit must be one of crop, pad, got 'stretch'$"):
        ImageProcessor(16, fit="stretch")


def test_a_square_tokenizer_says_what_it_takes(tiny_tokenizer_dir, run, padded, tmp_path):
    square = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    with pytest.raises(DataError, match=r"must be \(B, 3, 16, 16\) .* set data.image_size to 16$"):
        square.encode(torch.zeros(1, 3, 16, 24))
    with pytest.raises(DataError, match=r"must be \(B, 3, 16, 24\) .* set data.image_size to \[16, 24\]$"):
        run[2].tokenizer.encode(torch.zeros(1, 3, 24, 16))
    recipe = ExportRecipe(str(tmp_path / "codes"), str(tiny_tokenizer_dir), padded())
    with pytest.raises(DataError, match=r"^data.image_size is \[16, 24\], but the tokenizer in .* trained on 16; set"):
        export_codes(recipe)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": [16, 22]}, r"image_size must be a multiple of .* 4 in height and width, got \[16, 22\]$"),
        ({"image_size": 18}, r"image_size must be a multiple of the downsampling factor 4, got 18$"),
        ({"image_size": [16, 24], "scales": [1, 6]}, r"scales must be a list that ends on 4, the shorter side of the"),
        ({"image_size": [16]}, r"image_size must be an integer of at least 1, or \[height, width\], got \[16\]$"),
    ],
)
def test_sizes_that_do_not_fit_the_network(fields, message):
    with pytest.raises(ConfigError, match=message):
        WassersteinVQConfig(channel_multipliers=[1, 1, 1], **fields)


def test_a_square_is_kept_as_its_side():
    assert WassersteinVQConfig(image_size=[64, 64]).identity() == WassersteinVQConfig(image_size=64).identity()
    assert WassersteinVQConfig(image_size=[256, 256]).to_dict() == WassersteinVQConfig().to_dict()
