"""Tokenizers in float64, in which two programs are compared beyond the rounding of float32."""

import pytest
import torch
import torch.nn.functional as F

from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers.nearest import nearest_codes

FIELDS = {
    "unit codes": {"l2_normalize": True},
    "scales": {"scales": [1, 2, 4]},
    "groups": {"num_groups": 2},
}


@pytest.fixture(params=sorted(FIELDS))
def model(request):
    torch.manual_seed(0)
    config = WassersteinVQConfig(
        image_size=16,
        base_channels=16,
        channel_multipliers=[1, 1, 2],
        num_res_blocks=1,
        num_codes=32,
        code_dim=4,
        quantizer="vanilla",
        **FIELDS[request.param],
    )
    made = WassersteinVQModel(config).eval()
    with torch.no_grad():
        for parameter in made.codebook_parameters():
            parameter.normal_()
    return made


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


@torch.no_grad()
def test_all_parts_compute_in_float64(model, pictures):
    narrow = model.encode(pictures.float())
    wide = model.double()
    encoded, output = wide.encode(pictures), wide(pictures)
    tensors = (encoded.features, encoded.quantized, output.reconstruction, wide.decode_codes(encoded.codes))
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    torch.testing.assert_close(encoded.features.float(), narrow.features, rtol=1e-4, atol=1e-4)
    # What float32 has rounded shows beyond its digits.
    assert not torch.equal(encoded.features, encoded.features.float().double())
    torch.testing.assert_close(wide.decode(encoded.quantized), wide.decode_codes(encoded.codes), rtol=0, atol=1e-13)


@torch.no_grad()
def test_codes_of_length_one_have_it_in_float64():
    torch.manual_seed(0)
    sizes = {"image_size": 16, "base_channels": 16, "channel_multipliers": [1, 2], "num_codes": 8, "code_dim": 4}
    wide = WassersteinVQModel(WassersteinVQConfig(**sizes, quantizer="vanilla", l2_normalize=True)).double()
    vectors = wide.quantizer.lookup(torch.arange(8))
    assert torch.equal(vectors, F.normalize(wide.quantizer.codebook, dim=1))
    torch.testing.assert_close(vectors.square().sum(1), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_cast_to_float64_and_back_leaves_the_codes_theirs(model, tmp_path):
    before, weights = model.codes_hash(), {name: value.clone() for name, value in model.state_dict().items()}
    model.double()
    assert model.made(before)
    model.save_pretrained(tmp_path)
    loaded = WassersteinVQModel.from_pretrained(tmp_path)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float64}
    assert loaded.made(before)
    for back in (model.float(), loaded.float()):
        assert back.codes_hash() == before
        assert all(torch.equal(value, weights[name]) for name, value in back.state_dict().items())


def test_a_cast_to_fewer_bits_ends_at_float32_in_the_quantizer(model):
    model.double().half()
    assert {value.dtype for value in model.quantizer.state_dict().values()} == {torch.float32}
    assert model.encoder[0].weight.dtype == torch.float16


@pytest.mark.parametrize("similarity", ["euclidean", "dot"])
def test_the_search_sees_what_float32_does_not(similarity):
    codebook = torch.tensor([[1.0, 0.0], [1.0 + 5e-8, 0.0], [0.0, 1.0]], dtype=torch.float64)
    features = torch.tensor([[1.0 + 5e-8, 0.0], [1.0, 0.0]], dtype=torch.float64)
    wide = nearest_codes(features, codebook, similarity=similarity)
    assert wide[0] == 1
    assert nearest_codes(features.float(), codebook.float(), similarity=similarity)[0] == 0
