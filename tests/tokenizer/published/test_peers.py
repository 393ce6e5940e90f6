"""Tokenizers made with other projects' own classes: the same features, codes and pictures, from their very weights."""

import pytest
import torch
import torch.nn.functional as F

from tests.peers import peer
from wvq.models.published import PublishedOptions
from wvq.tokenizer.published.registry import read_tokenizer, write_tokenizer
from wvq.tokenizer.quantizers.alignment import gaussian_wasserstein

OPTIONS = {
    "llamagen": PublishedOptions(image_size=16),
    "taming": PublishedOptions(image_size=16),
    "ibq": PublishedOptions(image_size=16),
    "var": PublishedOptions(scales=[1, 2, 4]),
    "wasserstein-var": PublishedOptions(scales=[1, 2, 4]),
}
NAMES = {
    "llamagen": "llamagen_vq",
    "taming": "taming_vqgan",
    "ibq": "ibq_tokenizer",
    "var": "var_vqvae",
    "wasserstein-var": "wasserstein_var_tokenizer",
}
# What is left out: counts of a training, and the convolution that three scales do not take.
DROPPED = {
    "llamagen": {"quantize.codebook_used"},
    "var": {"quantize.ema_vocab_hit_SV", *(f"quantize.quant_resi.qresi_ls.1.{word}" for word in ("weight", "bias"))},
    "wasserstein-var": {
        *("quantizer.queue.queue", "quantizer.queue.queue_ptr"),
        *(f"quantizer.phi.qresi_ls.1.{word}" for word in ("weight", "bias")),
    },
}


@pytest.fixture(params=sorted(NAMES))
def family(request):
    return request.param


@pytest.fixture
def given(family):
    return peer(NAMES[family])


@pytest.fixture
def model(family, given):
    return read_tokenizer(family, dict(given.weights), "weights", OPTIONS[family])


def close(value, reference):
    """Within 1e-4 of the largest value, what float32 leaves."""
    torch.testing.assert_close(value, reference, rtol=0, atol=1e-4 * float(reference.abs().max()))


@torch.no_grad()
def test_features_codes_and_pictures_are_theirs(given, model):
    io = given.io
    encoded, output = model.encode(io["pixel_values"]), model(io["pixel_values"])
    close(model.encoder(io["pixel_values"]), io["features"])
    assert torch.equal(encoded.codes, io["codes"])
    assert torch.equal(output.codes, io["codes"])
    clamped = io["reconstruction"].clamp(-1, 1)
    close(output.reconstruction.clamp(-1, 1), clamped)
    close(model.decode_codes(io["codes"]), clamped)
    if "quantized" in io:
        close(encoded.quantized, io["quantized"])
    if "decoded_codes" in io:
        close(output.reconstruction, io["decoded_codes"])
    if "reconstructions_per_scale" in io:
        close(model.decode_scales(io["codes"]), io["reconstructions_per_scale"])


@torch.no_grad()
def test_in_float64_too(given, model):
    io = given.io
    wide = model.double()
    encoded = wide.encode(io["pixel_values"])
    assert encoded.quantized.dtype == torch.float64
    assert torch.equal(encoded.codes, io["codes"])
    features = io["features"].double()
    given_precision = 1e-5 * float(features.abs().max())
    torch.testing.assert_close(wide.encoder(io["pixel_values"].double()), features, rtol=0, atol=given_precision)
    close(wide.decode_codes(io["codes"]), io["reconstruction"].clamp(-1, 1).double())


def test_every_weight_is_taken_or_left_out_on_purpose_and_is_written_back_to_the_bit(family, given, model):
    written = write_tokenizer(family, model)
    assert written.keys() <= given.weights.keys()
    other = {name for name, weight in given.weights.items() if not torch.equal(weight, written.get(name, weight + 1))}
    assert other == DROPPED.get(family, set())


@torch.no_grad()
def test_codes_are_compared_at_length_one_though_their_rows_have_lengths():
    given = peer("llamagen_vq")
    model = read_tokenizer("llamagen", dict(given.weights), "weights", OPTIONS["llamagen"])
    assert torch.equal(model.quantizer.codebook, given.weights["quantize.embedding.weight"])
    close(model.encode(given.io["pixel_values"]).features, F.normalize(given.io["features"], dim=1))


@torch.no_grad()
def test_the_alignment_of_the_authors_is_our_distance_of_covariances_as_they_take_them():
    """Theirs are unbiased, plus 1e-6 I, and that of the features times .25; in absolute units."""
    given = peer("wasserstein_var_tokenizer")
    features = given.io["alignment_features"].double()
    covariance = (features.T.cov() + 1e-6 * torch.eye(features.shape[1], dtype=torch.float64)) * 0.25
    codes = given.weights["quantizer.embedding.weight"]
    widened = codes.mean(0) + (codes - codes.mean(0)) * (len(codes) / (len(codes) - 1)) ** 0.5
    value = gaussian_wasserstein(features.mean(0), covariance, widened, normalize=False)
    torch.testing.assert_close(value[None], given.io["alignment_value"], rtol=1e-5, atol=0)
