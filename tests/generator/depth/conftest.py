"""A tiny tokenizer of two codebooks, its codes, and recipes of short runs over them."""

import pytest

from wvq.generator.recipes import GeneratorRecipe
from wvq.generator.train import train_generator
from wvq.settings.train import TrainConfig
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import ExportRecipe
from wvq.tokenizer.train import train_tokenizer


@pytest.fixture(scope="package")
def product_tokenizer_dir(tmp_path_factory, tiny_tokenizer_recipe):
    """Folder of a tokenizer with two codebooks of 32 codes; do not write into it."""
    out = tmp_path_factory.mktemp("product") / "tokenizer"
    train_tokenizer(tiny_tokenizer_recipe(out, train={"images": 320}, model={"num_groups": 2}))
    return out


@pytest.fixture(scope="package")
def product_codes_dir(tmp_path_factory, product_tokenizer_dir, caption_folder, tiny_data):
    """Code cache of the captioned pictures, two crops each; do not write into it."""
    out = tmp_path_factory.mktemp("product") / "codes"
    data = tiny_data(caption_folder, crop="random", flip=True)
    export_codes(ExportRecipe(out=str(out), tokenizer=str(product_tokenizer_dir), data=data, num_crops=2))
    return out


@pytest.fixture
def product_recipe(tmp_path, product_codes_dir, product_tokenizer_dir):
    """A function that makes a recipe of 10 steps over product codes, with some fields changed."""

    def make(train=None, model=None, **changes) -> GeneratorRecipe:
        shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "token_dropout": 0.0, **(model or {})}
        loop = {"images": 160, "batch_size": 16, "learning_rate": 5e-3, "log_every": 16, **(train or {})}
        fields = {"out": str(tmp_path / "run"), "codes": str(product_codes_dir)}
        fields |= {"tokenizer": str(product_tokenizer_dir), "model": shape, "train": TrainConfig(**loop)}
        return GeneratorRecipe(**fields | changes)

    return make


@pytest.fixture
def trained(product_tokenizer_dir):
    """A function that trains the generator of a recipe and gives its held-out figures."""

    def train(recipe: GeneratorRecipe, **options) -> dict:
        return train_generator(recipe, WassersteinVQModel.from_pretrained(product_tokenizer_dir), **options)

    return train
