"""What several tests of the generator share: tokenizers, a text encoder, and recipes of short runs."""

import pytest

from tests.tiny import save_text_encoder
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.settings.train import TrainConfig
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import ExportRecipe
from wvq.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


@pytest.fixture(scope="package")
def scale_tokenizer_dir(tmp_path_factory, tiny_tokenizer_recipe):
    """Folder of a tokenizer of the scales 1, 2 and 4, 21 codes a picture; do not write into it."""
    out = tmp_path_factory.mktemp("scales") / "tokenizer"
    train_tokenizer(tiny_tokenizer_recipe(out, train={"images": 320}, model={"scales": [1, 2, 4]}))
    return out


@pytest.fixture(scope="package")
def scale_codes_dir(tmp_path_factory, scale_tokenizer_dir, caption_folder, tiny_data):
    """Code cache of the captioned pictures, two crops each; do not write into it."""
    out = tmp_path_factory.mktemp("scales") / "codes"
    data = tiny_data(caption_folder, crop="random", flip=True)
    export_codes(ExportRecipe(out=str(out), tokenizer=str(scale_tokenizer_dir), data=data, num_crops=2))
    return out


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
