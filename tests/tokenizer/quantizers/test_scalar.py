"""Fixed grids against the published code: FSQ's values, indices and gradient, LFQ's bits and its entropy."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from vector_quantize_pytorch import FSQ, LFQ

from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.registry import build_quantizer
from wvq.tokenizer.quantizers.scalar import bit_entropy

LEVELS = ([8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fsq(levels, **fields):
    shape = {"num_codes": math.prod(levels), "code_dim": len(levels), "levels": levels}
    return build_quantizer(WassersteinVQConfig(image_size=16, quantizer="fsq", **shape, **fields))


def lfq(bits, **fields):
    config = WassersteinVQConfig(image_size=16, quantizer="lfq", num_codes=2**bits, code_dim=bits, **fields)
    return build_quantizer(config)


# ---- FSQ


def test_the_grid_is_made_once_a_device_and_serves_every_mode(monkeypatch):
    """First needed by sampling, in inference mode; then trained with, copied and pickled."""
    quantizer, made, tensor = fsq([4, 3]), [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: made.append(args) or tensor(*args, **kwargs))
    with torch.inference_mode():
        codes = quantizer.encode(draw(5, 2))
    for copied in (quantizer, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        features = draw(5, 2).requires_grad_()
        output = copied(features)
        assert torch.equal(output.codes, codes)
        output.quantized.sum().backward()
        assert features.grad.abs().sum() > 0
    assert len(made) == 1
    assert quantizer.state_dict() == {}


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_equals_the_published_code(levels):
    ours, incoming = draw(1, 4000, len(levels)).mul(1.5).requires_grad_(), draw(1, 4000, len(levels), seed=1)
    theirs = ours.detach().clone().requires_grad_()
    output = fsq(levels)(ours)
    values, indices = FSQ(levels)(theirs)
    assert torch.equal(output.codes, indices.long())
    assert len(output.codes.unique()) > 200
    torch.testing.assert_close(output.quantized, values, rtol=0, atol=1e-6)
    output.quantized.backward(incoming)
    values.backward(incoming)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [*LEVELS, [2, 2, 2], [3], [2, 9, 4]])
def test_all_fsq_codes_come_back(levels):
    quantizer = fsq(levels)
    codes = torch.arange(quantizer.num_codes)
    vectors = quantizer.lookup(codes)
    assert torch.equal(quantizer.assign(vectors), codes)
    assert vectors.abs().max() <= 1
    assert [len(column.unique()) for column in vectors.T] == levels


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_vectors_are_those_of_the_published_code(levels):
    codes = torch.arange(math.prod(levels))
    assert torch.equal(fsq(levels).lookup(codes), FSQ(levels).indices_to_codes(codes))


def test_fsq_counts_the_first_dim_fastest():
    vectors = fsq([3, 2, 4]).lookup(torch.arange(24))
    assert vectors[:3].tolist() == [[-1, -1, -1], [0, -1, -1], [1, -1, -1]]
    assert vectors[3].tolist() == [-1, 0, -1]
    assert vectors[6].tolist() == [-1, -1, -0.5]


@pytest.mark.parametrize("levels", [[8, 5], [2, 3], [4, 7]])
def test_every_fsq_code_can_be_reached_and_extremes_stay_in_range(levels):
    quantizer = fsq(levels)
    axis = torch.linspace(-6, 6, 400)
    features = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    assert quantizer.encode(features).unique().tolist() == list(range(quantizer.num_codes))
    assert quantizer.encode(torch.full((2,), -1e30)).item() == 0
    assert quantizer.encode(torch.full((2,), 1e30)).item() == quantizer.num_codes - 1


def test_fsq_has_no_loss_and_nothing_to_train():
    quantizer = fsq([4, 4])
    output = quantizer(draw(3, 5, 2), update_statistics=True)
    assert output.losses == {}
    assert output.loss.item() == 0
    assert list(quantizer.parameters()) == []
    assert quantizer.training_state() == {}


# ---- LFQ


@pytest.mark.parametrize("bits", [4, 10])
def test_lfq_equals_the_published_code(bits):
    features = draw(1, 500, bits)
    features[0, 0] = 0.0  # no positive sign
    output = lfq(bits)(features)
    values, indices, _ = LFQ(dim=bits, codebook_size=2**bits).eval()(features)
    assert torch.equal(output.codes, indices.long())
    assert torch.equal(output.quantized, values)


@pytest.mark.parametrize("bits", [4, 10])
@pytest.mark.parametrize("spread", [0.003, 0.05, 1.0])
def test_lfq_losses_equal_those_of_the_published_code(bits, spread):
    ours = draw(1, 500, bits).mul(spread).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    output = lfq(bits, commitment_weight=0.25, entropy_weight=0.1)(ours)
    # Their probabilities are cut at 1e-5 inside the logarithm.
    published = LFQ(dim=bits, codebook_size=2**bits, commitment_loss_weight=0.25, entropy_loss_weight=0.1).train()
    (_, _, loss), parts = published(theirs, inv_temperature=100.0, return_loss_breakdown=True)
    torch.testing.assert_close(output.losses["commitment"], parts.commitment.detach())
    expected = (parts.per_sample_entropy - parts.batch_entropy).detach()
    torch.testing.assert_close(output.losses["entropy"], expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(output.loss, loss, rtol=2e-3, atol=2e-3)
    output.loss.backward()
    loss.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-2, atol=2e-2 * theirs.grad.abs().max().item())


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_all_lfq_codes_come_back_with_the_first_dim_as_highest_bit(bits):
    quantizer, codes = lfq(bits), torch.arange(2**bits)
    vectors = quantizer.lookup(codes)
    assert vectors.tolist() == [list(row) for row in itertools.product([-1.0, 1.0], repeat=bits)]
    assert torch.equal(quantizer.encode(vectors), codes)


def direct_entropy(logits):
    """Both entropies from the N x K matrix of a softmax over minus the squared distances."""
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=logits.shape[1])), dtype=logits.dtype)
    shares = (2 * logits @ codes.T).softmax(1)
    return torch.special.entr(shares).sum(1).mean() - torch.special.entr(shares.mean(0)).sum()


@pytest.mark.parametrize("bits", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
def test_bit_entropy_equals_the_direct_computation(bits, spread):
    logits = (spread * draw(60, bits).double() + 0.1).requires_grad_()
    again = logits.detach().clone().requires_grad_()
    ours, direct = bit_entropy(logits), direct_entropy(again)
    torch.testing.assert_close(ours, direct, rtol=1e-9, atol=1e-12)
    ours.backward()
    direct.backward()
    torch.testing.assert_close(logits.grad, again.grad, rtol=1e-7, atol=1e-12)


def test_bit_entropy_of_equal_certain_features_is_zero():
    logits = torch.full((50, 6), 30.0).requires_grad_()
    value = bit_entropy(logits)
    assert value.item() == pytest.approx(0, abs=1e-6)
    value.backward()
    assert logits.grad.abs().max() < 1e-6


def test_bit_entropy_of_certain_features_spread_over_all_codes_is_the_lowest_there_is():
    logits = 30 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)))
    assert bit_entropy(logits).item() == pytest.approx(-6 * math.log(2), rel=1e-6)


def test_bit_entropy_of_undecided_features_is_zero():
    assert bit_entropy(torch.zeros(50, 6)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e3, 1e30])
def test_bit_entropy_is_finite_at_any_length(size):
    logits = (size * draw(40, 8)).requires_grad_()
    value = bit_entropy(logits)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
