"""Parts of a pipeline that do not belong together: refused when they are joined, saved and loaded, unless asked for."""

import json
import shutil

import pytest
import torch
from transformers import BertConfig, BertModel

from tests.text_encoders import ONE_A_FAMILY, save_encoder, save_stack
from tests.tiny import TEXT_DIM, make_generator, make_pipeline, save_text_encoder
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.generator.text.encoder import TextEncoder
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.train import TrainConfig
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel

ANOTHER = "the text encoder is not the one that the generator was trained with"
CALL = {"prompt": ["red circle", "blue cross", "", "green square"], "num_images": 8, "seed": 0}


@pytest.fixture(scope="module")
def other_dir(encoder_dir, tmp_path_factory):
    """A text encoder of the same sizes with another weight."""
    encoder = TextEncoder(encoder_dir, 5)
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight.mul_(-1)
    folder = tmp_path_factory.mktemp("other")
    encoder.save_pretrained(folder)
    return folder


def edit(file, **changes) -> None:
    """Change fields of a JSON file; those that become None go."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def swap_text_encoder(pipeline_dir, encoder_dir) -> None:
    shutil.rmtree(pipeline_dir / "text_encoder")
    shutil.copytree(encoder_dir, pipeline_dir / "text_encoder")


# ---- another text encoder


def test_a_loaded_pipeline_has_the_encoder_of_the_training(copied, other_dir):
    swap_text_encoder(copied, other_dir)
    with pytest.raises(CheckpointError, match=f"pipeline: {ANOTHER}; restore it, or pass ignore_text_enc") as caught:
        ImageGenerationPipeline.from_pretrained(copied)
    assert len(str(caught.value).splitlines()) == 1


def test_another_text_encoder_can_be_allowed(copied, other_dir, pipe, tmp_path):
    swap_text_encoder(copied, other_dir)
    again = ImageGenerationPipeline.from_pretrained(copied, ignore_text_encoder_mismatch=True)
    assert not torch.equal(again(**CALL).codes, pipe(**CALL).codes)
    again.save_pretrained(tmp_path / "saved")  # who asked for it once has asked for it
    with pytest.raises(CheckpointError, match=ANOTHER):
        ImageGenerationPipeline.from_pretrained(tmp_path / "saved")


def test_joining_parts_compares_the_encoder(pipe, other_dir):
    parts = (pipe.tokenizer, pipe.generator, TextEncoder(other_dir, 5))
    with pytest.raises(CheckpointError, match=ANOTHER):
        ImageGenerationPipeline(*parts)
    ImageGenerationPipeline(*parts, ignore_text_encoder_mismatch=True)


def test_an_encoder_that_changed_since_is_not_saved(tiny_tokenizer_dir, encoder_dir, tmp_path):
    pipe = make_pipeline(tiny_tokenizer_dir, encoder_dir)
    with torch.no_grad():
        next(pipe.text_encoder.model.parameters()).add_(1)
    with pytest.raises(CheckpointError, match=ANOTHER):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_saving_beside_another_text_encoder_is_refused_before_anything_is_written(pipe, other_dir, tmp_path):
    shutil.copytree(other_dir, tmp_path / "saved" / "text_encoder")
    with pytest.raises(CheckpointError, match="text_encoder already holds another text_encoder; choose another folder"):
        pipe.save_pretrained(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["text_encoder"]


def test_saving_beside_an_encoder_of_shorter_texts_is_refused(pipe, tmp_path):
    folder = save_encoder("bert", tmp_path / "saved" / "text_encoder")
    config = BertConfig.from_pretrained(folder)
    config.max_position_embeddings = 4
    BertModel(config).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="text_encoder already holds another text_encoder; choose another folder"):
        pipe.save_pretrained(tmp_path / "saved")


def test_saving_beside_the_same_text_encoder_keeps_it(pipe, copied):
    before = (copied / "text_encoder" / "model.safetensors").stat().st_mtime_ns
    pipe.save_pretrained(copied)
    assert (copied / "text_encoder" / "model.safetensors").stat().st_mtime_ns == before


def test_a_damaged_text_encoder_is_not_kept_in_silence(pipe, copied):
    (copied / "text_encoder" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="text_encoder"):
        pipe.save_pretrained(copied)


@pytest.mark.parametrize("sizes", [{"text_dim": TEXT_DIM, "text_length": 6}, {"text_dim": 8, "text_length": 5}])
def test_an_encoder_of_another_size_is_one_line(sizes, pipe):
    generator = make_generator(**sizes, text_padding="right")
    with pytest.raises(ConfigError, match=r"the generator takes . text tokens of width .* encoder gives 5"):
        ImageGenerationPipeline(pipe.tokenizer, generator, pipe.text_encoder, ignore_text_encoder_mismatch=True)


def test_figures_are_kept_under_the_identity_of_the_encoder(pipe):
    assert pipe.weights_hashes()["text_encoder"] == pipe.text_encoder.identity()


# ---- the tokenizer


def test_a_pipeline_that_could_not_be_loaded_is_not_saved(saved, tiny_tokenizer_dir, encoder_dir, tmp_path):
    half = ImageGenerationPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    pipe = make_pipeline(tiny_tokenizer_dir, encoder_dir)
    for wrong in (half, pipe):  # trained on, before or after a cast
        with torch.no_grad():
            next(wrong.tokenizer.encoder.parameters()).add_(1)
        with pytest.raises(CheckpointError, match="the tokenizer is not the one that the generator was trained with"):
            wrong.save_pretrained(tmp_path / "saved")
    pipe.tokenizer = WassersteinVQModel(WassersteinVQConfig(image_size=16, num_codes=8, channel_multipliers=[1, 1]))
    with pytest.raises(ConfigError, match="the tokenizer has num_codes 8, the generator 32"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pipe = make_pipeline(tiny_tokenizer_dir, encoder_dir)
    with torch.no_grad():
        next(pipe.tokenizer.encoder.parameters()).add_(1)
    parts = (pipe.tokenizer, pipe.generator, pipe.text_encoder)
    ImageGenerationPipeline(*parts, ignore_tokenizer_mismatch=True).save_pretrained(tmp_path / "saved")
    ImageGenerationPipeline.from_pretrained(tmp_path / "saved", ignore_tokenizer_mismatch=True)


# ---- folders from before


def make_old(folder) -> None:
    """Turn a pipeline folder into one from before generators named their text encoder."""
    edit(folder / "generator" / "config.json", text_padding=None, text_encoder_hash=None)
    edit(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])


def test_a_folder_from_before_draws_from_left_padded_features(copied, pipe):
    make_old(copied)
    old = ImageGenerationPipeline.from_pretrained(copied)
    assert old.text_encoder.padding == "left"
    assert not torch.equal(old(**CALL).codes, pipe(**CALL).codes)
    # As then: transformers pads on the left.
    tokens = old.text_encoder.tokenizer(
        "red circle", padding="max_length", max_length=5, padding_side="left", return_tensors="pt"
    )
    states = old.text_encoder.model(**{name: tokens[name] for name in ("input_ids", "attention_mask")})
    features, mask = old.text_encoder.encode(["red circle"])
    torch.testing.assert_close(features[mask], states.last_hidden_state[mask])


def test_a_folder_from_before_compares_no_text_encoder(copied, other_dir):
    make_old(copied)
    swap_text_encoder(copied, other_dir)
    ImageGenerationPipeline.from_pretrained(copied)


def test_an_encoder_that_prepares_captions_otherwise_is_refused(pipe, encoder_dir):
    cleaned, parts = TextEncoder(encoder_dir, 5, cleaning="lower"), (pipe.tokenizer, pipe.generator)
    with pytest.raises(
        CheckpointError, match=r'with cleaning "none", and this .* has "lower"; make it with cleaning="n'
    ):
        ImageGenerationPipeline(*parts, cleaned)
    ImageGenerationPipeline(*parts, cleaned, ignore_text_encoder_mismatch=True)


def test_a_pipeline_keeps_how_its_captions_are_prepared(tiny_tokenizer_dir, encoder_dir, tmp_path):
    cleaned = TextEncoder(encoder_dir, 5, cleaning="lower")
    tokenizer = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    generator = make_generator(tokenizer_hash=tokenizer.codes_hash(), **cleaned.config_fields())
    pipe = ImageGenerationPipeline(tokenizer, generator, cleaned)
    for _ in range(2):  # the second time the encoder is there already
        pipe.save_pretrained(tmp_path / "pipeline")
    again = ImageGenerationPipeline.from_pretrained(tmp_path / "pipeline")
    assert again.text_encoder.identity() == cleaned.identity()
    asked = {"seed": 3, "output_type": "pt", "guidance_scale": 2.0}
    plain, odd = (again(prompt=prompt, **asked).images for prompt in ("red circle", "[Red] CIRCLE https://example.org"))
    assert torch.equal(plain, odd)


def test_an_encoder_that_pads_otherwise_than_the_generator_knows_is_refused(copied, encoder_dir):
    make_old(copied)
    generator = ImageCodeTransformer.from_pretrained(copied / "generator")
    tokenizer = WassersteinVQModel.from_pretrained(copied / "tokenizer")
    with pytest.raises(CheckpointError, match=r'"left" inside the text encoder.*make it with padding="left"'):
        ImageGenerationPipeline(tokenizer, generator, TextEncoder(encoder_dir, 5))
    ImageGenerationPipeline(tokenizer, generator, TextEncoder(encoder_dir, 5, padding="left"))


# ---- trained pipelines


@pytest.fixture
def train(tiny_codes_dir, tiny_tokenizer_dir, tmp_path):
    """A function that trains a pipeline for a moment with an encoder, into ``tmp_path / "run"``."""

    def run(encoder_dir, **changes):
        condition = ConditionConfig(text=True, classes=False, text_encoder=str(encoder_dir), text_length=8)
        fields = {"out": str(tmp_path / "run"), "codes": str(tiny_codes_dir), "tokenizer": str(tiny_tokenizer_dir)}
        fields["model"] = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "condition_bias": True}
        fields["train"] = TrainConfig(images=64, batch_size=16, learning_rate=5e-3)
        return train_pipeline(GeneratorRecipe(**fields, condition=condition, **changes))[1]

    return run


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_a_pipeline_of_every_family_is_trained_saved_loaded_and_sampled(name, train, tmp_path):
    pipe = train(save_encoder(name, tmp_path / "encoder"))
    expected = pipe(**CALL).codes
    assert len(expected.unique(dim=0)) > 1
    config = pipe.generator.config
    assert config.text_padding == "right"
    assert config.text_encoder_hash == TextEncoder(tmp_path / "encoder", 3).identity()
    shutil.rmtree(tmp_path / "encoder")
    again = ImageGenerationPipeline.from_pretrained(tmp_path / "run")
    assert torch.equal(again(**CALL).codes, expected)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(ImageGenerationPipeline.from_pretrained(tmp_path / "again")(**CALL).codes, expected)


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_a_pipeline_with_a_stack_of_t5_from_before_loads(name, train, tmp_path):
    source = save_encoder(name, tmp_path / "encoder")
    expected = train(source)(**CALL).codes
    shutil.rmtree(tmp_path / "run" / "text_encoder")
    save_stack(source, tmp_path / "run" / "text_encoder")
    make_old(tmp_path / "run")
    old = ImageGenerationPipeline.from_pretrained(tmp_path / "run")
    assert torch.equal(old(**CALL).codes, expected)  # T5 counts positions between tokens: padding shifts nothing
    old.save_pretrained(tmp_path / "again")
    assert torch.equal(ImageGenerationPipeline.from_pretrained(tmp_path / "again")(**CALL).codes, expected)


def test_another_text_encoder_in_the_way_is_found_before_training(train, tmp_path):
    save_encoder("t5", tmp_path / "run" / "text_encoder")
    with pytest.raises(CheckpointError, match="already holds another text_encoder"):
        train(save_text_encoder(tmp_path / "encoder"))
    assert not (tmp_path / "run" / "generator").exists()
