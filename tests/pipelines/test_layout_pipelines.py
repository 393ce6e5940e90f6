"""Pipelines of layouts other than a grid: their folders, their cards, what `wvq info` says, other types."""

import json

import pytest
import torch
from transformers import AutoModel

from tests.tiny import LAYOUTS, make_generator, make_layout_pipeline, make_tokenizer
from wvq.app.describe import describe
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.kinds import drawing_text
from wvq.pipelines.folders import already_holds
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import model_card
from wvq.tokenizer.modeling import WassersteinVQModel

CALL = {"class_labels": [0, 1, 2], "prompt": "red circle", "num_images": 6, "seed": 0}


@pytest.fixture(scope="module", params=["product", "multi-scale"])
def layout_pipe(request, encoder_dir):
    """Conditional on class and text."""
    return make_layout_pipeline(request.param, encoder_dir)


@pytest.fixture(scope="module")
def layout_dir(layout_pipe, tmp_path_factory):
    """Folder of the saved pipeline; do not write into it."""
    folder = tmp_path_factory.mktemp("layouts") / "pipeline"
    layout_pipe.save_pretrained(folder)
    return folder


def test_a_loaded_pipeline_draws_the_same_codes(layout_pipe, layout_dir):
    index = json.loads((layout_dir / "model_index.json").read_text())
    assert index["_class_name"] == "ImageGenerationPipeline"
    assert index["generator"] == ["wvq", type(layout_pipe.generator).__name__]
    again = ImageGenerationPipeline.from_pretrained(layout_dir)
    assert torch.equal(again(**CALL).codes, layout_pipe(**CALL).codes)
    assert again.weights_hashes() == layout_pipe.weights_hashes()


def test_the_parts_load_by_transformers_own_way(layout_pipe, layout_dir):
    assert type(AutoModel.from_pretrained(layout_dir / "generator")) is type(layout_pipe.generator)
    assert type(AutoModel.from_pretrained(layout_dir / "tokenizer")) is WassersteinVQModel


def test_saving_again_keeps_equal_parts_and_refuses_others(layout_pipe, layout_dir, encoder_dir):
    for name, part in layout_pipe.components.items():
        assert already_holds(layout_dir, name, part)
    other = make_layout_pipeline(layout_pipe.generator.config.code_layout["kind"], encoder_dir, num_layers=1)
    with pytest.raises(CheckpointError, match="generator already holds another generator; choose another folder"):
        other.save_pretrained(layout_dir)


def test_a_tokenizer_of_another_layout_does_not_fit(layout_pipe):
    kind = layout_pipe.generator.config.code_layout["kind"]
    for fields in ({"scales": [1, 4]}, {"num_groups": 4}, {}):
        with pytest.raises(
            ConfigError, match=rf"the tokenizer has .* codes \(.*\), and the generator was made for {kind}"
        ):
            ImageGenerationPipeline(make_tokenizer(**fields), layout_pipe.generator, layout_pipe.text_encoder)


def test_scales_that_are_made_in_another_way_are_refused(scale_pipe):
    tokenizer = make_tokenizer(**LAYOUTS["multi-scale"], scale_conv_table="even")
    expected = "the tokenizer has scale_conv_table even, the generator var; take the tokenizer that it was trained with"
    with pytest.raises(ConfigError, match=f"^{expected}$"):
        ImageGenerationPipeline(tokenizer, scale_pipe.generator, ignore_tokenizer_mismatch=True)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weights": "bf16"}, {"weights": "int8"}])
def test_other_types_draw_pictures(options, layout_dir):
    output = ImageGenerationPipeline.from_pretrained(layout_dir, **options)(**CALL, output_type="pt")
    assert output.images.shape == (6, 3, 16, 16)
    assert output.images.isfinite().all()


def test_the_card_and_info_say_how_it_draws(scale_pipe, pipe, tmp_path):
    drawn = "a scale a pass, 3 passes for the 21 codes of a picture"
    kind = "`next_scale_transformer` of multi-scale codes (21 a picture, of the sides 1, 2, 4 one after the other)"
    assert f"- generator: {kind}: {drawn}; 2 layers" in model_card(scale_pipe)
    scale_pipe.generator.save_pretrained(tmp_path)
    lines = [" ".join(line.split()) for line in describe(tmp_path).splitlines()]
    assert {"kind next_scale_transformer of multi-scale codes", f"draws {drawn}", "conditioning adaptive"} <= set(lines)
    assert "a code a pass, 16 passes for the 16 codes of a picture" in model_card(pipe)


def test_info_names_passes_and_convolutions_only_where_there_are_any(tmp_path):
    models = {
        "any": make_generator(target_positions=True),
        "rows": make_generator(),
        "plain": make_tokenizer(**LAYOUTS["multi-scale"], num_scale_convs=0),
        "shared": make_tokenizer(**LAYOUTS["multi-scale"]),
    }
    lines = {}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        lines[name] = [" ".join(line.split()) for line in describe(tmp_path / name).splitlines()]
    assert "order any: passes may be set" in lines["any"]
    assert not any(line.startswith("order") for line in lines["rows"])
    assert "quantizer sliced" in lines["plain"]
    assert 'quantizer sliced, its scales share convolutions by the table "var"' in lines["shared"]


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
