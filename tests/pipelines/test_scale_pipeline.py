"""A pipeline that draws scale by scale: its folder, its card, what `wvq info` says, other types."""

import json

import pytest
import torch
from transformers import AutoModel

from tests.tiny import make_scale_pipeline, make_tokenizer
from wvq.app.describe import describe
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.kinds import drawing_text
from wvq.generator.next_scale.modeling import NextScaleTransformer
from wvq.pipelines.folders import already_holds
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import model_card
from wvq.tokenizer.modeling import WassersteinVQModel

CALL = {"class_labels": [0, 1, 2], "prompt": "red circle", "num_images": 6, "seed": 0}


@pytest.fixture(scope="module")
def scale_dir(scale_pipe, tmp_path_factory):
    """Folder of the saved pipeline; do not write into it."""
    folder = tmp_path_factory.mktemp("scales") / "pipeline"
    scale_pipe.save_pretrained(folder)
    return folder


def test_a_loaded_pipeline_draws_the_same_codes(scale_pipe, scale_dir):
    index = json.loads((scale_dir / "model_index.json").read_text())
    assert index["_class_name"] == "ImageGenerationPipeline"
    assert index["generator"] == ["wvq", "NextScaleTransformer"]
    again = ImageGenerationPipeline.from_pretrained(scale_dir)
    assert torch.equal(again(**CALL).codes, scale_pipe(**CALL).codes)
    assert again.weights_hashes() == scale_pipe.weights_hashes()


def test_the_parts_load_by_transformers_own_way(scale_dir):
    assert isinstance(AutoModel.from_pretrained(scale_dir / "generator"), NextScaleTransformer)
    assert isinstance(AutoModel.from_pretrained(scale_dir / "tokenizer"), WassersteinVQModel)


def test_saving_again_keeps_equal_parts_and_refuses_others(scale_pipe, scale_dir, encoder_dir):
    for name, part in scale_pipe.components.items():
        assert already_holds(scale_dir, name, part)
    other = make_scale_pipeline(encoder_dir, conditioning="adaptive_shared")
    with pytest.raises(CheckpointError, match="generator already holds another generator; choose another folder"):
        other.save_pretrained(scale_dir)


def test_a_tokenizer_of_other_scales_does_not_fit(scale_pipe):
    with pytest.raises(ConfigError, match=r"has multi-scale codes .* of the sides 1, 4 .*, and the generator was made"):
        ImageGenerationPipeline(make_tokenizer(scales=[1, 4]), scale_pipe.generator, scale_pipe.text_encoder)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weights": "bf16"}, {"weights": "int8"}])
def test_other_types_draw_pictures(options, scale_dir):
    output = ImageGenerationPipeline.from_pretrained(scale_dir, **options)(**CALL, output_type="pt")
    assert output.images.shape == (6, 3, 16, 16)
    assert output.images.isfinite().all()


def test_the_card_and_info_say_how_it_draws(scale_pipe, scale_dir, pipe):
    drawn = "a scale a pass, 3 passes for the 21 codes of a picture"
    kind = "`next_scale_transformer` of multi-scale codes (21 a picture, of the sides 1, 2, 4 one after the other)"
    assert f"- generator: {kind}: {drawn}; 2 layers" in model_card(scale_pipe)
    lines = [" ".join(line.split()) for line in describe(scale_dir / "generator").splitlines()]
    assert {"kind next_scale_transformer of multi-scale codes", f"draws {drawn}", "conditioning adaptive"} <= set(lines)
    assert "a code a pass, 16 passes for the 16 codes of a picture" in model_card(pipe)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ({"kind": "grid", "shapes": [[16, 16]]}, "a code a pass, 256 passes for the 256 codes of a picture"),
        (
            {"kind": "product", "shapes": [[16, 16, 2]]},
            "the codes of a position a pass, 256 passes for the 512 codes of a picture",
        ),
    ],
)
def test_how_each_kind_draws_in_words(layout, text, monkeypatch, scale_pipe):
    config = scale_pipe.generator.config
    monkeypatch.setattr(type(config), "code_layout", layout)
    assert drawing_text(config) == text
