"""Quantizers behind their one interface: shapes, gradients, exact lookup, loss weights, statistics."""

import math

import pytest
import torch

from wvq.errors import ConfigError
from wvq.tokenizer.alignment import gaussian_wasserstein
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers import QUANTIZERS, build_quantizer

ALIGNED = ("wasserstein", "sliced")


def make(name, num_codes=16, dim=3, spread=True, **fields):
    config = WassersteinVQConfig(image_size=16, quantizer=name, num_codes=num_codes, code_dim=dim, **fields)
    quantizer = build_quantizer(config)
    quantizer.reset_codebook()
    if spread:
        torch.nn.init.normal_(quantizer.codebook, generator=torch.Generator().manual_seed(1))
    return quantizer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=sorted(QUANTIZERS))
def name(request):
    return request.param


def test_shapes_and_types(name):
    output = make(name)(draw(2, 4, 5, 3))
    assert output.quantized.shape == (2, 4, 5, 3)
    assert output.codes.shape == (2, 4, 5)
    assert output.codes.dtype == torch.int64
    assert 0 <= output.codes.min() <= output.codes.max() < 16
    assert output.loss.shape == ()
    assert all(value.shape == () and not value.requires_grad for value in output.losses.values())
    assert all(value.shape == () and not value.requires_grad for value in output.statistics.values())


def test_the_gradient_passes_straight_through(name):
    features, incoming = draw(2, 4, 4, 3).requires_grad_(), draw(2, 4, 4, 3, seed=5)
    quantizer = make(name)
    quantizer(features).quantized.backward(incoming)
    assert torch.equal(features.grad, incoming)
    assert quantizer.codebook.grad is None


def test_quantized_equals_the_lookup_to_the_bit(name):
    quantizer = make(name)
    output = quantizer(100 * draw(2, 4, 4, 3) + 1)
    assert torch.equal(output.quantized, quantizer.lookup(output.codes))


def test_vectors_of_codes_are_coded_as_themselves(name):
    quantizer = make(name)
    codes = torch.randint(0, 16, (2, 3, 3), generator=torch.Generator().manual_seed(2))
    assert torch.equal(quantizer.encode(quantizer.lookup(codes)), codes)


def test_encode_gives_the_codes_of_forward(name):
    quantizer, features = make(name), draw(2, 4, 4, 3)
    assert torch.equal(quantizer.encode(features), quantizer(features).codes)


def test_loss_terms_equal_their_definition(name):
    quantizer, features = make(name), draw(2, 4, 4, 3)
    output = quantizer(features)
    squared = (features - quantizer.lookup(output.codes)).square().mean()
    torch.testing.assert_close(output.losses["codebook"], squared)
    torch.testing.assert_close(output.losses["commitment"], squared)
    torch.testing.assert_close(
        output.loss, sum(quantizer.weights[f"{term}_weight"] * value for term, value in output.losses.items())
    )


@pytest.mark.parametrize(
    ("name", "weights"), [("vanilla", (1.0, 1.0, 0.0)), ("wasserstein", (1.0, 0.1, 0.5)), ("sliced", (1.0, 0.1, 0.5))]
)
def test_published_weights(name, weights):
    assert tuple(make(name).weights.values()) == weights


def test_the_config_overrides_each_weight():
    torch.manual_seed(0)
    quantizer = make("wasserstein", codebook_weight=2, commitment_weight=0.0, alignment_weight=0.01)
    assert quantizer.weights == {"codebook_weight": 2, "commitment_weight": 0.0, "alignment_weight": 0.01}
    output = quantizer(draw(2, 4, 4, 3))
    torch.testing.assert_close(output.loss, 2 * output.losses["codebook"] + 0.01 * output.losses["alignment"])


def test_gradients_of_the_loss_reach_their_side(name):
    features = draw(2, 4, 4, 3).requires_grad_()
    quantizer = make(name, codebook_weight=1.0, commitment_weight=0.0)
    quantizer(features).loss.backward()
    assert features.grad.abs().max() == 0
    assert quantizer.codebook.grad.abs().max() > 0
    features.grad = None
    quantizer = make(name, codebook_weight=0.0, commitment_weight=1.0, alignment_weight=0.0)
    quantizer(features).loss.backward()
    assert features.grad.abs().max() > 0
    assert quantizer.codebook.grad.abs().max() == 0


def test_alignment_moves_unused_codes(name):
    quantizer = make(name)
    with torch.no_grad():
        quantizer.codebook[-1] = 50.0  # nobody's nearest
    quantizer(draw(2, 4, 4, 3)).loss.backward()
    assert (quantizer.codebook.grad[-1].abs().max() > 0) == (name in ALIGNED)


def test_vanilla_has_no_alignment():
    quantizer = make("vanilla")
    assert quantizer.alignment(draw(8, 3), update_statistics=True) is None
    assert set(quantizer(draw(2, 4, 4, 3)).losses) == {"codebook", "commitment"}


@pytest.mark.parametrize("name", ALIGNED)
def test_alignment_of_weight_zero_is_not_computed(name):
    assert "alignment" not in make(name, alignment_weight=0.0)(draw(2, 4, 4, 3)).losses


def test_statistics_of_a_batch():
    quantizer = make("vanilla", num_codes=4, dim=1)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [9.0]]))
    output = quantizer(torch.tensor([[0.1], [0.0], [1.2], [2.0]]))
    assert output.codes.tolist() == [0, 0, 1, 2]
    assert output.statistics["quantization_error"].item() == pytest.approx((0.01 + 0.04) / 4, rel=1e-5)
    assert output.statistics["utilization"].item() == 0.75
    assert output.statistics["perplexity"].item() == pytest.approx(
        math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4)), rel=1e-5
    )


def test_quantization_error_sums_over_dims(name):
    quantizer, features = make(name), draw(2, 4, 4, 3)
    output = quantizer(features)
    expected = (features - output.quantized).square().sum(-1).mean()
    torch.testing.assert_close(output.statistics["quantization_error"], expected)


def test_starts_of_the_codebook(name):
    codebook = make(name, num_codes=4096, dim=8, spread=False).codebook
    if name == "vanilla":
        assert codebook.abs().max() <= 1 / 4096
        assert codebook.std().item() == pytest.approx(1 / 4096 / 3**0.5, rel=0.05)
    else:
        assert codebook.std().item() == pytest.approx(0.01, rel=0.05)


def test_only_training_steps_count_in_the_window():
    quantizer, first, second = make("wasserstein"), draw(2, 4, 4, 3), 3 + draw(2, 4, 4, 3, seed=1)
    quantizer(first)
    assert len(quantizer.window) == 0
    quantizer(first, update_statistics=True)
    assert len(quantizer.window) == 32
    before = quantizer.window.moments()
    alone = quantizer(second).losses["alignment"]
    assert len(quantizer.window) == 32
    assert all(torch.equal(a, b) for a, b in zip(before, quantizer.window.moments(), strict=True))
    joined = quantizer(second, update_statistics=True).losses["alignment"]
    assert len(quantizer.window) == 64
    both = torch.cat([first, second]).reshape(-1, 3).double()
    centred = both - both.mean(0)
    expected = gaussian_wasserstein(both.mean(0), centred.T @ centred / 64, quantizer.codebook)
    torch.testing.assert_close(joined, expected.detach())
    assert abs(alone - joined) > 0.1


def test_the_window_covers_the_configured_number_of_features():
    quantizer = make("wasserstein", window_size=64)
    for seed in range(5):
        quantizer(draw(2, 4, 4, 3, seed=seed), update_statistics=True)
    assert len(quantizer.window) == 64


def test_training_state_round_trip(name):
    quantizer, other = make(name), make(name)
    for seed in range(3):
        quantizer(draw(2, 4, 4, 3, seed=seed), update_statistics=True)
    other.load_training_state(quantizer.training_state(), torch.device("cpu"))
    torch.manual_seed(0)
    expected = quantizer(draw(2, 4, 4, 3, seed=9), update_statistics=True).loss
    torch.manual_seed(0)
    assert torch.equal(other(draw(2, 4, 4, 3, seed=9), update_statistics=True).loss, expected)


def test_is_computed_in_float32_under_autocast(name):
    quantizer, features = make(name), draw(2, 4, 4, 3)
    torch.manual_seed(0)
    expected = quantizer(features)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        output = quantizer(features)
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantized, expected.quantized)
    assert torch.equal(output.loss, expected.loss)
    half = quantizer(features.bfloat16())
    assert half.quantized.dtype == torch.bfloat16
    assert half.loss.dtype == torch.float32
    assert torch.equal(half.codes, quantizer.encode(features.bfloat16().float()))


def test_an_unknown_name_is_an_error_with_the_near_match():
    with pytest.raises(ConfigError, match=r'"wassertein" is unknown \(did you mean "wasserstein"\?\); one of vanilla'):
        WassersteinVQConfig(image_size=16, quantizer="wassertein")
