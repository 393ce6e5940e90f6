"""The loss of the multi-scale quantizer: its terms and their weights, the weights of the scales, the alignment."""

import pytest
import torch
import torch.nn.functional as F

from tests.tokenizer.quantizers.scales import SCALES, TOKENS, draw, make, seeded
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.alignment import gaussian_wasserstein
from wvq.tokenizer.quantizers.registry import QUANTIZERS

NAMES = sorted(QUANTIZERS)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_squared_terms_are_means_over_the_scales(name):
    quantizer, features = make(name), draw()
    output = quantizer(features)
    target = quantizer.prepare(features)
    partial = quantizer.lookup_scales(output.codes)
    expected = torch.stack([F.mse_loss(maps, target) for maps in partial]).mean()
    assert "codebook" in output.losses
    for term in {"codebook", "commitment"} & set(output.losses):
        torch.testing.assert_close(output.losses[term], expected.detach())
    error = (target - partial[-1]).square().sum(-1).mean()
    torch.testing.assert_close(output.statistics["quantization_error"], error.detach())


def test_weights_are_the_methods_own_and_the_codebook_term_is_always_there(name):
    published = QUANTIZERS[name].defaults
    quantizer = make(name)
    assert quantizer.weights == {"codebook_weight": 1.0, **published}
    changed = make(name, **{key: 0.3 + 0.2 * i for i, key in enumerate(published)})
    output = changed(draw())
    assert {f"{term}_weight" for term in output.losses} == set(changed.weights)
    expected = sum(changed.weights[f"{term}_weight"] * value for term, value in output.losses.items())
    torch.testing.assert_close(output.loss.detach(), expected)


def test_gradients_of_the_loss_reach_their_side(name):
    # Shifted: at the coarsest scale fsq codes features near 0 as 0, from which a convolution's weights learn nothing.
    quantizer, features = make(name), (draw() + 1).requires_grad_()
    quantizer(features).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in quantizer.parameters() if p.requires_grad)
    assert {id(p) for p in quantizer.codebook_parameters()}.isdisjoint({id(p) for p in quantizer.convs.parameters()})
    assert (features.grad is not None and features.grad.abs().max() > 0) == (name != "fsq")
    without = make(name, **{key: 0.0 for key in QUANTIZERS[name].defaults if key != "codebook_weight"})
    features = draw().requires_grad_()
    without(features).loss.backward()
    assert features.grad is None or not features.grad.any()  # the codebook term is not the encoder's


@pytest.mark.parametrize("name", ["wasserstein", "sliced", "mmd"])
def test_the_alignment_is_over_the_residuals_of_all_scales(name):
    quantizer, features = make(name), draw()
    output = seeded(quantizer, features)
    tokens = torch.cat(quantizer.residuals(features, output.codes))
    assert len(tokens) == 3 * TOKENS
    single = seeded(quantizer.book.alignment, tokens, joined=False)
    # mmd and sliced draw from, or sort, the tokens: their order is that of the scales.
    torch.testing.assert_close(output.losses["alignment"], single.detach(), rtol=1e-4, atol=1e-5)


def test_the_window_counts_residuals():
    quantizer, features = make("wasserstein", window_size=10_000), draw()
    tokens = torch.cat(quantizer.residuals(features, quantizer.encode(features))).double()
    alignment = quantizer(features, update_statistics=True).losses["alignment"]
    assert len(quantizer.book.window) == 3 * TOKENS
    centred = tokens - tokens.mean(0)
    expected = gaussian_wasserstein(tokens.mean(0), centred.T @ centred / len(tokens), quantizer.book.codebook)
    torch.testing.assert_close(alignment, expected.detach())


# ---- weights of the scales


def test_each_scale_counts_by_its_weight_over_their_mean(name):
    weights = [0.5, 0, 2, 3.5]
    plain, weighted, features = make(name), make(name, scale_weights=weights), draw()
    expected, output = plain(features), weighted(features)
    target, partial = plain.prepare(features), plain.lookup_scales(expected.codes)
    each = torch.stack([F.mse_loss(maps, target) for maps in partial]).detach()
    value = (each * torch.tensor(weights)).sum() / sum(weights)
    for term in {"codebook", "commitment"} & set(output.losses):
        torch.testing.assert_close(output.losses[term], value)
    assert torch.equal(output.codes, expected.codes)
    others = output.losses.keys() - {"codebook", "commitment"}
    again = seeded(plain, features), seeded(weighted, features)
    assert all(torch.equal(again[0].losses[term], again[1].losses[term]) for term in others)


@pytest.mark.parametrize("weight", [1, 0.1, 1 / 3, 7.3e-5, 1e308])
def test_equal_weights_are_none_to_the_bit(name, weight):
    quantizers, features = [make(name), make(name, scale_weights=[weight] * len(SCALES))], draw()
    outputs = [seeded(quantizer, features) for quantizer in quantizers]
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    for output in outputs:
        output.loss.backward()
    for one, other in zip(*(quantizer.parameters() for quantizer in quantizers), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)


def test_scale_weights_are_saved_and_change_no_codes(tmp_path):
    config = WassersteinVQConfig(image_size=64, scales=[1, 4], scale_weights=[1, 5])
    plain = WassersteinVQConfig(image_size=64, scales=[1, 4])
    config.save_pretrained(tmp_path)
    assert WassersteinVQConfig.from_pretrained(tmp_path).scale_weights == [1, 5]
    assert config.identity() == plain.identity()
    assert "scale_weights" not in plain.to_dict()


# ---- the target scale


def test_a_target_scale_narrows_the_residuals_of_all_scales_together():
    quantizer, features = make("wasserstein", target_scale=0.5), draw()
    output = quantizer(features)
    tokens = torch.cat(quantizer.residuals(features, output.codes)).double()
    covariance = tokens.T.cov(correction=0)
    unit = covariance.diagonal().max().sqrt()
    moments = tokens.mean(0) / unit, 0.25 * covariance / unit**2
    expected = gaussian_wasserstein(*moments, quantizer.book.codebook.double() / unit, normalize=False)
    torch.testing.assert_close(output.losses["alignment"].double(), expected.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [name for name, method in QUANTIZERS.items() if method.aligned])
def test_codes_follow_the_target_scale(name):
    fields = {"num_codes": 64, "num_samples": 64, "codebook_weight": 0, "commitment_weight": 0}
    spreads = []
    for scale in (1.0, 0.5):
        quantizer = make(name, target_scale=scale, **fields)
        optimizer = torch.optim.Adam(quantizer.codebook_parameters(), lr=0.05)
        for seed in range(60):
            loss = seeded(quantizer, draw(16, seed=seed), seed=seed, update_statistics=True).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spreads.append(quantizer.book.codebook.var(0).sum().item())
    assert spreads[1] / spreads[0] == pytest.approx(0.25, abs=0.05)  # variances
