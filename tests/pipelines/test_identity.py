"""What a model computes is known by its weights and its config: jobs, evaluations, caches and folders go by both."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import make_generator, make_layout_pipeline
from wvq.errors import CacheError, CheckpointError, ConfigError
from wvq.eval.generation import evaluate_generation
from wvq.eval.reconstruction import evaluate_reconstruction
from wvq.generator.kinds import CONFIGS
from wvq.generator.train import check_cache
from wvq.models.pretrained import model_hash, weights_hash
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.sampling_job import sample_to_folder
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel

# Each another value than the tiny models', for the fields that stay outside of the identity.
GENERATOR_OUTSIDE = {
    "size": None, "dropout": 0.5, "token_dropout": 0.5, "feed_forward_dropout": 0.3, "drop_path": 0.2,
    "initializer_range": 1.0, "head": "normal", "class_names": ["x", "y", "z"], "text_encoder_hash": "x",
    "tokenizer_hash": "y", "any_order": True,
}  # fmt: skip
TOKENIZER_OUTSIDE = {"fit": "pad", "pad_color": "white", 
    "dropout": 0.5, "gradient_estimator": "rotation", "codebook_weight": 0.0, "commitment_weight": 2.0,
    "alignment_weight": 3.0, "entropy_weight": 0.0, "target_scale": 2.0, "window_size": 7, "num_projections": 3,
    "num_samples": 5, "affine_interval": 9, "ema_decay": 0.5, "class_names": ["a"],
    "cast_hashes": ["x", "y"], "scale_weights": [1.0, 3.0], "alignment_units": "absolute",
}  # fmt: skip
TOKENIZER = {"image_size": 16, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1, "code_dim": 2}
ASKED = {"class_labels": ["circle", "cross"], "num_images": 4, "seed": 3, "progress": False}


def changed(model, **fields):
    """The same weights under another config."""
    values = {name: getattr(model.config, name) for name in model.config.fields()}
    other = type(model)(type(model.config)(**{**values, **fields})).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.fixture
def other_heads(class_pipe):
    """The pipeline with the same weights, split over another number of heads."""
    generator = changed(class_pipe.generator, num_heads=1, num_kv_heads=1)
    return ImageGenerationPipeline(class_pipe.tokenizer, generator, sampling=class_pipe.sampling)


# ---- the identity


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, config in CONFIGS.items() for field in sorted(config.fields_outside_identity())],
)
def test_fields_outside_a_generators_identity_change_nothing(kind, field):
    model = make_layout_pipeline(kind).generator
    other = changed(model, **{field: GENERATOR_OUTSIDE[field]})
    assert model_hash(other) == model_hash(model)
    codes, labels = torch.randint(0, 32, (2, model.config.sequence_length)), torch.tensor([0, 2])
    assert torch.equal(other(codes, labels).logits, model(codes, labels).logits)


# A residual projector is known by its own weights (tests/tokenizer/test_networks.py).
@pytest.mark.parametrize("field", sorted({*WassersteinVQConfig.fields_outside_identity()} - {"residual_projector"}))
def test_fields_outside_a_tokenizers_identity_change_nothing(field, pictures):
    scales = {"scales": [1, 8]} if field == "scale_weights" else {}
    model = WassersteinVQModel(WassersteinVQConfig(**TOKENIZER, **scales, num_codes=8)).eval()
    other = changed(model, **{field: TOKENIZER_OUTSIDE[field]})
    assert model_hash(other) == model_hash(model)
    assert other.codes_hash() == model.codes_hash()
    pixels = pictures(2, size=16) / 127.5 - 1
    codes = model.encode(pixels).codes
    assert torch.equal(other.encode(pixels).codes, codes)
    assert torch.equal(other.decode_codes(codes), model.decode_codes(codes))


@pytest.mark.parametrize("fields", [{"num_heads": 1, "num_kv_heads": 1}, {"rope_theta": 3.0}, {"norm_eps": 0.1}])
def test_a_generators_config_is_part_of_its_hash(fields):
    model = make_generator(num_classes=3)
    other = changed(model, **fields)
    assert weights_hash(other) == weights_hash(model)
    assert model_hash(other) != model_hash(model)
    codes, labels = torch.arange(32).view(2, 16), torch.tensor([0, 2])
    assert not torch.allclose(other(codes, labels).logits, model(codes, labels).logits)


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        ({"quantizer": "fsq", "levels": [2, 4]}, {"levels": [4, 2]}),
        ({"scales": [1, 2, 8], "num_scale_convs": 1}, {"scale_conv_ratio": 0.9}),
        ({"scales": [1, 2, 8], "num_scale_convs": 1}, {"scales": [1, 4, 8]}),
    ],
)
def test_a_tokenizers_config_is_part_of_the_hash_of_its_codes(made, fields, tmp_path):
    model = WassersteinVQModel(WassersteinVQConfig(**TOKENIZER, num_codes=8, **made)).eval()
    other = changed(model, **fields)
    assert weights_hash(other) == weights_hash(model)
    assert model.made(model.codes_hash())
    assert not other.made(model.codes_hash())
    model.save_pretrained(tmp_path)
    assert WassersteinVQModel.from_pretrained(tmp_path).codes_hash() == model.codes_hash()


def test_hashes_of_reduced_weights_are_those_of_the_whole_ones(class_pipe, tmp_path):
    class_pipe.save_pretrained(tmp_path / "p")
    reduced = ImageGenerationPipeline.from_pretrained(tmp_path / "p", weights="bf16")
    assert reduced.weights_hashes() == class_pipe.weights_hashes()
    assert reduced.former_hashes() == class_pipe.former_hashes()


# ---- who goes by it


def test_a_job_under_another_config_is_refused(class_pipe, other_heads, tmp_path):
    sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    with pytest.raises(ConfigError, match="was started with another weights"):
        sample_to_folder(other_heads, tmp_path / "s", resume=True, **ASKED)


def test_a_job_of_an_earlier_version_goes_on_with_a_warning(class_pipe, other_heads, tmp_path):
    sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    file = tmp_path / "s" / "job.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": class_pipe.former_hashes()}))
    before = (tmp_path / "s" / "000003.png").read_bytes()
    (tmp_path / "s" / "000003.png").unlink()
    with pytest.warns(UserWarning, match=r"job\.json is of an earlier version and knows models by their weights alone"):
        sample_to_folder(class_pipe, tmp_path / "s", resume=True, **ASKED)
    assert (tmp_path / "s" / "000003.png").read_bytes() == before


@pytest.fixture
def evaluate(picture_set, pictures, projection, tmp_path):
    """Evaluates in one folder; what lies there already is taken up."""
    data = picture_set(pictures(12, size=16), [0, 1, 2] * 4, ("circle", "cross", "square"))

    def run(part, **settings):
        options = {"batch_size": 4, "progress": False, "work": tmp_path / "work", "feature_network": projection}
        if isinstance(part, WassersteinVQModel):
            return evaluate_reconstruction(part, data, **options)
        return evaluate_generation(part, data, 6, **options, **settings)

    return run


def rewrite_identity(folder, **values):
    file = folder / "identity.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_evaluation_under_another_config_is_refused(evaluate, class_pipe, other_heads):
    evaluate(class_pipe, classes=None)
    with pytest.raises(ConfigError, match=r"left by an evaluation with another pipeline_weights\.generator"):
        evaluate(other_heads, classes=None)


def test_an_evaluation_of_a_tokenizer_under_another_config_is_refused(evaluate):
    model = WassersteinVQModel(WassersteinVQConfig(**TOKENIZER, num_codes=8, quantizer="fsq", levels=[2, 4]))
    evaluate(model)
    with pytest.raises(ConfigError, match="left by an evaluation with another tokenizer_weights"):
        evaluate(changed(model, levels=[4, 2]))


def test_an_evaluation_knows_classes_by_what_their_names_stand_for(evaluate, class_pipe):
    evaluate(class_pipe, classes="reference")
    names = ["cross", "circle", "square"]
    renamed = ImageGenerationPipeline(class_pipe.tokenizer, changed(class_pipe.generator, class_names=names))
    with pytest.raises(ConfigError, match="left by an evaluation with another conditions"):
        evaluate(renamed, classes="reference", **vars(class_pipe.sampling))


@pytest.mark.parametrize("task", ["generation", "reconstruction"])
def test_evaluations_of_an_earlier_version_go_on_with_a_warning(task, evaluate, class_pipe, tmp_path):
    part = class_pipe if task == "generation" else class_pipe.tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = evaluate(part)
        evaluate(part)
    if task == "generation":
        rewrite_identity(tmp_path / "work", pipeline_weights=class_pipe.former_hashes())
    else:
        rewrite_identity(tmp_path / "work", tokenizer_weights=weights_hash(part))
    with pytest.warns(UserWarning, match=r"identity\.json is of an earlier version and knows models by their weights"):
        assert evaluate(part)["metrics"] == first["metrics"]


@pytest.mark.parametrize("former", [False, True])
def test_a_cache_and_a_generator_go_by_the_hash_of_their_tokenizer(former, tmp_path):
    """Those of earlier versions hold the hash of its weights alone."""
    model = WassersteinVQModel(WassersteinVQConfig(**TOKENIZER, num_codes=8, quantizer="fsq", levels=[2, 4]))
    other = changed(model, levels=[4, 2])
    kept = weights_hash(model, without=("decoder.", "projector.out_")) if former else model.codes_hash()
    header = SimpleNamespace(num_codes=8, grid=[8, 8], layout=model.config.code_layout, tokenizer_hash=kept)
    recipe = SimpleNamespace(codes="codes", tokenizer="tokenizer")
    check_cache(header, model, recipe)
    sizes = {"num_codes": 8, "grid": [8, 8]}
    ImageGenerationPipeline(model, make_generator(tokenizer_hash=kept, **sizes)).save_pretrained(tmp_path / "p")
    ImageGenerationPipeline.from_pretrained(tmp_path / "p")
    if not former:
        with pytest.raises(CacheError, match="codes was made by another tokenizer"):
            check_cache(header, other, recipe)
        message = "the tokenizer is not the one that the generator was trained with"
        parts = other, make_generator(tokenizer_hash=kept, **sizes)
        with pytest.raises(CheckpointError, match=message):
            ImageGenerationPipeline(*parts).save_pretrained(tmp_path / "q")
        ImageGenerationPipeline(*parts, ignore_tokenizer_mismatch=True).save_pretrained(tmp_path / "q")
        with pytest.raises(CheckpointError, match=message):
            ImageGenerationPipeline.from_pretrained(tmp_path / "q")


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"num_heads": 1, "num_kv_heads": 1}, "num_heads"), ({"class_names": ["x", "y", "z"]}, "class_names")],
)
def test_a_part_with_another_config_is_not_taken_for_the_one_that_is_there(fields, named, class_pipe, tmp_path):
    class_pipe.save_pretrained(tmp_path / "p")
    other = ImageGenerationPipeline(class_pipe.tokenizer, changed(class_pipe.generator, **fields))
    with pytest.raises(CheckpointError, match=f"already holds this generator with another {named}"):
        other.save_pretrained(tmp_path / "p")
