"""What several tests of the generator share: a tokenizer, a text encoder, and recipes of short runs."""

import pytest

from tests.tiny import save_text_encoder
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.settings.train import TrainConfig
from wvq.tokenizer.modeling import WassersteinVQModel


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


@pytest.fixture
def recipe(tmp_path, tiny_codes_dir, tiny_tokenizer_dir, encoder_dir):
    """A function that makes a recipe of 10 steps, conditional on classes, with some fields changed."""

    def make(train=None, model=None, **changes) -> GeneratorRecipe:
        shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "dropout": 0.1, "token_dropout": 0.0}
        loop = {"images": 160, "batch_size": 16, "learning_rate": 5e-3, "log_every": 16, **(train or {})}
        fields = {"out": str(tmp_path / "run"), "codes": str(tiny_codes_dir), "tokenizer": str(tiny_tokenizer_dir)}
        fields["condition"] = ConditionConfig(text_encoder=str(encoder_dir), text_length=5)
        fields |= {"model": {**shape, **(model or {})}, "train": TrainConfig(**loop)}
        return GeneratorRecipe(**{**fields, **changes})

    return make


@pytest.fixture
def text_condition(encoder_dir):
    return ConditionConfig(text=True, text_encoder=str(encoder_dir), text_length=5)
