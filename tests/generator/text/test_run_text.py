"""A run goes on with the text encoder that it was started with, encoded in the same way."""

import pytest
import torch

from tests.tiny import save_text_encoder
from wvq.errors import ConfigError
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.train import train_generator
from wvq.settings.train import TrainConfig
from wvq.training.trainer import Trainer


@pytest.fixture
def encoder_dir(tmp_path):
    return save_text_encoder(tmp_path / "encoder")


@pytest.fixture
def cut(tiny_codes_dir, tiny_tokenizer_dir, tokenizer, encoder_dir, tmp_path, monkeypatch):
    """The recipe of a run that was cut short after its first checkpoint."""
    recipe = GeneratorRecipe(
        out=str(tmp_path / "run"),
        codes=str(tiny_codes_dir),
        tokenizer=str(tiny_tokenizer_dir),
        condition=ConditionConfig(text=True, text_encoder=str(encoder_dir), text_length=8),
        model={"hidden_size": 32, "num_layers": 1, "num_heads": 2},
        train=TrainConfig(images=96, batch_size=16, save_every=32),
    )
    step = Trainer._step

    def interrupted(self, batches):
        if self.progress.images_seen == 64:
            raise InterruptedError
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(InterruptedError):
            train_generator(recipe, tokenizer)
    return recipe


def test_a_run_goes_on_with_its_text_encoder(cut, tokenizer, encoder_dir, tmp_path):
    train_generator(cut, tokenizer, resume=True)
    config = ImageCodeTransformer.from_pretrained(tmp_path / "run" / "generator").config
    assert (config.text_padding, config.text_encoder_hash) == ("right", TextEncoder(encoder_dir, 8).identity())


def test_another_encoder_in_the_same_place_is_refused(cut, tokenizer, encoder_dir):
    encoder = TextEncoder(encoder_dir, 8)
    with torch.no_grad():
        next(encoder.model.parameters()).add_(1)
    encoder.save_pretrained(encoder_dir)
    with pytest.raises(ConfigError, match=r"^condition\.text_encoder: .*encoder is not what it was when the run in"):
        train_generator(cut, tokenizer, resume=True)


def test_a_run_from_before_goes_on_as_it_began(cut, tokenizer, encoder_dir, tmp_path):
    (tmp_path / "run" / "generator" / "training" / "text_encoder.json").unlink()
    train_generator(cut, tokenizer, resume=True)
    config = ImageCodeTransformer.from_pretrained(tmp_path / "run" / "generator").config
    assert config.text_padding == "left"
    assert config.text_encoder_hash == TextEncoder(encoder_dir, 8, padding="left").identity()
