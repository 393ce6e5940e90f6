"""Reduced weights: the next-code distribution hardly moves, and what a reduced model cannot do is refused."""

import copy

import pytest
import torch

from tests.generator.next_code.test_sampling import model_and_condition
from tests.tiny import make_generator, make_pipeline
from wvq.errors import ConfigError
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.reduced import REDUCED, Int8Linear, reduce_weights
from wvq.generator.sampling import sample_codes
from wvq.pipelines.image_generation import ImageGenerationPipeline


@pytest.mark.parametrize(("kind", "most"), [("bf16", 0.004), ("int8", 0.009)])
def test_a_layer_is_itself_to_its_precision(kind, most):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96, bias=False)
    x = torch.randn(3, 5, 64)
    with torch.inference_mode():
        found, expected = REDUCED[kind](linear)(x), linear(x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert (found - expected).square().mean().sqrt() < most * expected.square().mean().sqrt()


@pytest.mark.parametrize("kind", REDUCED)
@pytest.mark.parametrize("changes", [{}, {"head": "tied"}, {"num_kv_heads": 1, "qk_norm": True, "code_dim": 4}])
def test_the_distribution_of_the_next_code_hardly_moves(kind, changes):
    model = make_generator(num_classes=3, **changes)
    codes = torch.randint(0, 32, (16, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(codes).logits.log_softmax(-1)
        found = reduce_weights(copy.deepcopy(model), kind)(codes).logits.log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert 0 < divergence < 5e-3  # random weights: logits far larger than trained ones, whose figure is in the docs


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_bytes_and_bfloat16_inputs_give_the_same_product(monkeypatch, rows):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 96, bias=False), 3 * torch.randn(rows, 1, 64)
    by_bytes = Int8Linear(linear)
    if not by_bytes.vnni:
        pytest.skip("needs a processor with VNNI")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with torch.inference_mode():
        found, other = by_bytes(x), Int8Linear(linear)(x)
        alone = by_bytes(x[:1])
    assert (found - other).square().mean().sqrt() < 0.015 * other.square().mean().sqrt()
    torch.testing.assert_close(found[:1], alone)


def test_inputs_of_zero_stay_zero():
    layer = Int8Linear(torch.nn.Linear(8, 4, bias=False))
    assert torch.equal(layer(torch.zeros(2, 3, 8)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("kind", REDUCED)
def test_sampling_runs_and_a_batch_equals_singles(kind, window):
    model, condition = model_and_condition(3)
    reduce_weights(model, kind)
    settings = SamplingSettings(guidance_scale=2.0, window=window)
    codes = sample_codes(model, condition, [0, 1, 2], settings)
    assert codes.shape == (3, 4, 4)
    assert torch.equal(sample_codes(model, condition, [0, 1, 2], settings), codes)


def test_what_a_reduced_model_cannot_do_is_refused(class_pipe_folder, tmp_path):
    pipe = ImageGenerationPipeline.from_pretrained(class_pipe_folder, weights="bf16")
    assert pipe.generator.reduced == "bf16"
    with pytest.raises(ConfigError, match="the weights are bf16 already"):
        reduce_weights(pipe.generator, "int8")
    int8 = ImageGenerationPipeline.from_pretrained(class_pipe_folder, weights="int8")
    with pytest.raises(ConfigError, match="weights int8 run on the CPU alone, not on meta"):
        int8.to("meta")
    with pytest.raises(ConfigError, match="cannot be saved with bf16 weights; load it without"):
        pipe.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(ConfigError, match=r'weights "int4" is unknown \(did you mean "int8"\?\); one of bf16, int8'):
        ImageGenerationPipeline.from_pretrained(class_pipe_folder, weights="int4")
    with pytest.raises(ConfigError, match="only a float32 model can be reduced"):
        ImageGenerationPipeline.from_pretrained(class_pipe_folder, weights="bf16", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def class_pipe_folder(tiny_tokenizer_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "p"
    make_pipeline(tiny_tokenizer_dir).save_pretrained(folder)
    return folder
