"""Published codebooks against their published code and against the formulas in numpy: ema, CVQ, SimVQ."""

import itertools

import numpy as np
import pytest
import torch
from vector_quantize_pytorch import SimVQ
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.registry import build_quantizer

CODES, DIM = 8, 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(name, num_codes=CODES, dim=DIM, **fields):
    config = WassersteinVQConfig(image_size=16, quantizer=name, num_codes=num_codes, code_dim=dim, **fields)
    quantizer = build_quantizer(config)
    quantizer.reset_codebook()
    with torch.no_grad():
        quantizer.codebook.copy_(draw(num_codes, dim, seed=50))
    return quantizer


def nearest(features, codebook):
    return ((features[:, None] - codebook) ** 2).sum(2).argmin(1)


def wide(tensor):
    return tensor.detach().double().numpy()


# ---- ema


def started(seed=3, **fields):
    """An ema quantizer in the middle of its training."""
    quantizer = make("ema", **fields)
    sizes = 20 + 5 * draw(CODES, seed=seed)
    state = {"sizes": sizes, "sums": quantizer.codebook * sizes[:, None]}
    quantizer.load_training_state({key: value.clone() for key, value in state.items()}, torch.device("cpu"))
    return quantizer, state


@pytest.mark.parametrize("decay", [0.8, 0.99])
def test_ema_equals_the_published_code(decay):
    quantizer, state = started(ema_decay=decay)
    published = Codebook(DIM, CODES, decay=decay, threshold_ema_dead_code=0).train()
    published.embed.copy_(quantizer.codebook[None])
    published.cluster_size.copy_(state["sizes"][None])
    published.embed_avg.copy_(state["sums"][None])
    for step in range(6):
        features = draw(1, 200, DIM, seed=step)
        output = quantizer(features, update_statistics=True)
        vectors, codes, _ = published(features)
        assert torch.equal(output.codes, codes)
        torch.testing.assert_close(output.quantized, vectors, rtol=1e-5, atol=1e-5)
        # We keep the smoothed sizes: 1e-5 added to a size of about 20 a step, 1e-6 relative over all steps.
        torch.testing.assert_close(quantizer.codebook, published.embed[0], rtol=1e-5, atol=1e-5)
        held = quantizer.training_state()
        torch.testing.assert_close(held["sizes"], published.cluster_size[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(held["sums"], published.embed_avg[0], rtol=1e-5, atol=1e-4)


def test_an_ema_step_equals_the_formula():
    quantizer, state = started(ema_decay=0.7)
    features = draw(40, DIM)
    before = wide(quantizer.codebook)
    codes = nearest(features.double().numpy(), before)
    sizes, sums = wide(state["sizes"]) * 0.7, wide(state["sums"]) * 0.7
    for code, feature in zip(codes, features.double().numpy(), strict=True):
        sizes[code] += 0.3
        sums[code] += 0.3 * feature
    smoothed = (sizes + 1e-5) / (sizes.sum() + CODES * 1e-5) * sizes.sum()
    quantizer(features, update_statistics=True)
    held = quantizer.training_state()
    np.testing.assert_allclose(wide(held["sizes"]), smoothed, rtol=1e-6)
    np.testing.assert_allclose(wide(held["sums"]), sums, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(wide(quantizer.codebook), sums / smoothed[:, None], rtol=1e-5, atol=1e-6)


def test_ema_codes_become_the_means_of_clusters():
    quantizer = make("ema")
    centres = torch.tensor(list(itertools.product([-5.0, 5.0], repeat=DIM)))
    with torch.no_grad():
        quantizer.codebook.copy_(centres + 0.1)
    features = centres.repeat_interleave(10, 0) + 0.2 * draw(10 * CODES, DIM)
    for _ in range(60):
        quantizer(features, update_statistics=True)
    torch.testing.assert_close(quantizer.codebook.detach(), features.view(CODES, 10, DIM).mean(1), rtol=1e-3, atol=1e-3)


def test_a_dead_ema_code_moves_along_its_ray_towards_the_origin():
    quantizer, _ = started()
    with torch.no_grad():
        quantizer.codebook[0] = 100.0 * torch.tensor([1.0, 2.0, -2.0])
        quantizer._sums[0] = quantizer.codebook[0] * quantizer._sizes[0]
    lengths = []
    for step in range(200):
        output = quantizer(0.1 * draw(50, DIM, seed=step), update_statistics=True)
        assert 0 not in output.codes or step > 40
        assert quantizer.codebook.isfinite().all()
        if 0 in output.codes:
            break
        direction = quantizer.codebook[0] / quantizer.codebook[0].norm()
        torch.testing.assert_close(direction, torch.tensor([1.0, 2.0, -2.0]) / 3, rtol=1e-4, atol=1e-4)
        lengths.append(quantizer.codebook[0].norm().item())
    assert all(later <= sooner * (1 + 1e-5) for sooner, later in itertools.pairwise(lengths))
    assert lengths[-1] < 0.01 * lengths[0]


def test_an_ema_code_that_never_had_features_stays_finite():
    quantizer = make("ema")
    for _ in range(300):
        quantizer(torch.ones(20, DIM) + 0.01 * draw(20, DIM), update_statistics=True)
        assert quantizer.codebook.isfinite().all()
    assert all(value.isfinite().all() for value in quantizer.training_state().values())


def test_the_ema_codebook_is_not_trained_by_gradient():
    quantizer = make("ema")
    assert quantizer.codebook_parameters() == []
    assert not quantizer.codebook.requires_grad
    features = draw(40, DIM).requires_grad_()
    before = quantizer.codebook.clone()
    output = quantizer(features, update_statistics=True)
    output.loss.backward()
    assert not torch.equal(quantizer.codebook, before)
    # The gradient is that of the codes of the forward pass, not of the updated ones.
    expected = 2 * (features.detach() - before[output.codes]) / features.numel()
    torch.testing.assert_close(features.grad, expected)


# ---- online


def online_step(codebook, shares, features, decay):
    """One CVQ step in numpy: the codebook, the shares, and how strongly each code was pulled."""
    codes = nearest(features, codebook)
    counts = np.array([(codes == k).sum() for k in range(len(codebook))])
    shares = decay * shares + (1 - decay) * counts / len(features)
    pull = np.exp(-shares * len(codebook) * 10 / (1 - decay) - 1e-3)
    moved = codebook.copy()
    for k in range(len(codebook)):
        closest = features[((features - codebook[k]) ** 2).sum(1).argmin()]
        moved[k] = (1 - pull[k]) * codebook[k] + pull[k] * closest
    return moved, shares, pull


@pytest.mark.parametrize("decay", [None, 0.5])
def test_online_steps_equal_the_formula(decay):
    quantizer = make("online", num_codes=30, ema_decay=decay)
    codebook, shares = wide(quantizer.codebook), np.zeros(30)
    for step in range(2):
        features = draw(200, DIM, seed=step)
        codebook, shares, pull = online_step(codebook, shares, features.double().numpy(), decay or 0.99)
        quantizer(features, update_statistics=True)
        np.testing.assert_allclose(wide(quantizer.training_state()["shares"]), shares, rtol=1e-5)
        np.testing.assert_allclose(wide(quantizer.codebook), codebook, rtol=1e-4, atol=1e-6)
        assert 0.01 < pull.max() < 1
        assert pull.min() < 1e-3


def test_an_unused_online_code_is_pulled_to_its_closest_feature_and_used_ones_stay():
    quantizer = make("online", num_codes=4)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0] * 3, [1.0] * 3, [2.0] * 3, [50.0] * 3]))
    features = torch.cat([k + 0.01 * draw(30, DIM, seed=k) for k in range(3)])
    before = quantizer.codebook.detach().clone()
    quantizer(features, update_statistics=True)
    closest = features[(features - 50).square().sum(1).argmin()]
    torch.testing.assert_close(quantizer.codebook[3].detach(), closest, rtol=0, atol=0.06)  # exp(-1e-3) of the way
    torch.testing.assert_close(quantizer.codebook[:3].detach(), before[:3], rtol=0, atol=1e-6)


def test_the_online_codebook_is_trained_by_gradient_too():
    quantizer = make("online")
    assert [p is quantizer.codebook for p in quantizer.codebook_parameters()] == [True]
    before = quantizer.codebook.detach().clone()
    features = draw(40, DIM)
    output = quantizer(features, update_statistics=True)
    output.loss.backward()
    used = output.codes.unique()
    assert len(used) > 4
    expected = torch.zeros(CODES, DIM)
    expected.index_add_(0, output.codes, 2 * (before[output.codes] - features) / features.numel())
    torch.testing.assert_close(quantizer.codebook.grad, expected)


# ---- linear


def test_only_the_map_of_the_linear_codebook_is_trained():
    quantizer = make("linear")
    assert [name for name, p in quantizer.named_parameters() if p.requires_grad] == ["map.weight", "map.bias"]
    assert len(quantizer.codebook_parameters()) == 2
    frozen, before = quantizer.codebook.clone(), quantizer.lookup(torch.arange(CODES)).detach()
    optimizer = torch.optim.SGD(quantizer.codebook_parameters(), lr=0.1)
    quantizer(draw(100, DIM), update_statistics=True).loss.backward()
    optimizer.step()
    assert torch.equal(quantizer.codebook, frozen)
    after = quantizer.lookup(torch.arange(CODES)).detach()
    assert ((after - before).abs().amax(1) > 0).all()  # one map moves all codes
    expected = frozen @ quantizer.map.weight.T + quantizer.map.bias
    torch.testing.assert_close(after, expected.detach())


def test_the_linear_codebook_learns_the_features():
    quantizer = make("linear")
    features = 5 + 0.5 * draw(400, DIM)
    optimizer = torch.optim.SGD(quantizer.codebook_parameters(), lr=0.3)
    first = quantizer(features).statistics["quantization_error"]
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(features).loss.backward()
        optimizer.step()
    assert quantizer(features).statistics["quantization_error"] < 0.05 * first


def test_linear_equals_the_published_code():
    quantizer = make("linear", num_codes=64, commitment_weight=0.25)
    published = SimVQ(DIM, 64, rotation_trick=False, input_to_quantize_commit_loss_weight=0.25)
    published.frozen_codebook.copy_(quantizer.codebook)
    with torch.no_grad():
        quantizer.map.bias.zero_()
        published.code_transform.weight.copy_(quantizer.map.weight)
    features = draw(1, 500, DIM)
    vectors, codes, loss = published(features)
    output = quantizer(features)
    assert torch.equal(output.codes, codes)
    assert len(codes.unique()) > 20
    assert torch.equal(quantizer.encode(features), codes)
    torch.testing.assert_close(output.quantized, vectors)
    torch.testing.assert_close(quantizer.lookup(codes), published.indices_to_codes(codes))
    torch.testing.assert_close(output.loss, loss)
    output.loss.backward()
    loss.backward()
    torch.testing.assert_close(quantizer.map.weight.grad, published.code_transform.weight.grad)
