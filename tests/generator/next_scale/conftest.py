"""Recipes of short runs over multi-scale codes."""

import pytest

from wvq.generator.recipes import GeneratorRecipe
from wvq.generator.train import train_generator
from wvq.settings.train import TrainConfig
from wvq.tokenizer.modeling import WassersteinVQModel


@pytest.fixture
def scale_recipe(tmp_path, scale_codes_dir, scale_tokenizer_dir):
    """A function that makes a recipe of 10 steps over multi-scale codes, with some fields changed."""

    def make(train=None, model=None, **changes) -> GeneratorRecipe:
        shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "token_dropout": 0.0, **(model or {})}
        loop = {"images": 160, "batch_size": 16, "learning_rate": 5e-3, "log_every": 16, **(train or {})}
        fields = {"out": str(tmp_path / "run"), "codes": str(scale_codes_dir)}
        fields |= {"tokenizer": str(scale_tokenizer_dir), "model": shape, "train": TrainConfig(**loop)}
        return GeneratorRecipe(**fields | changes)

    return make


@pytest.fixture
def trained(scale_tokenizer_dir):
    """A function that trains the generator of a recipe and gives its held-out figures."""

    def train(recipe: GeneratorRecipe, **options) -> dict:
        return train_generator(recipe, WassersteinVQModel.from_pretrained(scale_tokenizer_dir), **options)

    return train
