"""Codes of length one and codes chosen by their product: where features are, what is decoded, how both train."""

import pytest
import torch
import torch.nn.functional as F

from tests.tokenizer.quantizers.features import saved_and_read, spread_codes
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.alignment import gaussian_wasserstein, packed_moments, packed_sums
from wvq.tokenizer.quantizers.registry import QUANTIZERS, build_quantizer

FREE = sorted(name for name in QUANTIZERS if QUANTIZERS[name].by_gradient)


def make(name="vanilla", spread=True, **fields):
    fields = {"num_codes": 40, "code_dim": 4, "window_size": 100, "num_samples": 12, **fields}
    quantizer = build_quantizer(WassersteinVQConfig(image_size=64, quantizer=name, **fields))
    torch.manual_seed(1)
    quantizer.reset_codebook()
    if spread:
        spread_codes(quantizer)
    return quantizer


def draw(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_methods_are_those_whose_codes_a_gradient_alone_moves():
    assert FREE == ["mmd", "sliced", "vanilla", "wasserstein"]


# ---- length one


@pytest.mark.parametrize("name", FREE)
@torch.no_grad()
def test_features_and_codes_are_compared_at_length_one(name):
    quantizer, features = make(name, l2_normalize=True), draw(2, 5, 5, 4)
    codes = quantizer.encode(features)
    similarities = F.normalize(features, dim=-1).double() @ F.normalize(quantizer.codebook, dim=1).double().T
    assert torch.equal(codes, similarities.argmax(-1))
    assert torch.equal(quantizer.encode(features * draw(2, 5, 5, 1).abs()), codes)
    assert torch.equal(quantizer.prepare(features), F.normalize(features, dim=-1))
    vectors = quantizer.lookup(codes)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 5, 5))
    assert torch.equal(vectors, F.normalize(quantizer.codebook, dim=1)[codes])
    assert torch.equal(quantizer(features).quantized, vectors)
    everything = torch.arange(40)
    assert torch.equal(quantizer.code_tensors(torch.device("cpu"))["codebook"], quantizer.lookup(everything))
    assert torch.equal(quantizer.encode(quantizer.lookup(everything)), everything)


@torch.no_grad()
def test_the_codebook_keeps_its_rows():
    quantizer = make(l2_normalize=True)
    rows = quantizer.codebook.clone()
    quantizer(draw(8, 4))
    assert torch.equal(saved_and_read(quantizer)["weights"]["codebook"], rows)
    assert (rows.norm(dim=1) - 1).abs().min() > 1e-4


@pytest.mark.parametrize("name", FREE)
def test_new_codes_start_at_length_one_in_all_directions(name):
    quantizer = make(name, spread=False, l2_normalize=True, num_codes=400)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(400))
    assert quantizer.codebook.mean(0).norm() < 0.2


@torch.no_grad()
def test_each_codebook_of_a_product_has_codes_of_length_one():
    quantizer, features = make(l2_normalize=True, num_groups=2, code_dim=8), draw(3, 6, 8)
    quantized = quantizer(features).quantized
    torch.testing.assert_close(quantized.unflatten(-1, (2, 4)).norm(dim=-1), torch.ones(3, 6, 2))
    assert torch.equal(quantized, quantizer.lookup(quantizer.encode(features)))
    parts = quantizer.prepare(features).unflatten(-1, (2, 4))
    assert torch.equal(parts, F.normalize(features.unflatten(-1, (2, 4)), dim=-1))


@pytest.mark.parametrize("name", FREE)
def test_losses_and_alignment_are_of_unit_vectors(name):
    quantizer, features = make(name, l2_normalize=True), draw(200, 4)
    output = quantizer(features)
    unit = F.normalize(features, dim=1)
    torch.testing.assert_close(output.losses["commitment"], F.mse_loss(unit, output.quantized.detach()))
    torch.testing.assert_close(
        output.statistics["quantization_error"], (unit - output.quantized).square().sum(1).mean()
    )
    if name == "wasserstein":
        moments = packed_moments(packed_sums(unit))
        expected = gaussian_wasserstein(*moments, F.normalize(quantizer.codebook, dim=1))
        torch.testing.assert_close(output.losses["alignment"], expected)


@pytest.mark.parametrize("name", FREE)
def test_a_step_turns_codes_and_features_and_changes_no_length(name):
    quantizer, features = make(name, l2_normalize=True), draw(200, 4).requires_grad_()
    torch.manual_seed(3)
    output = quantizer(features, update_statistics=True)
    (output.loss + (output.quantized * draw(200, 4, seed=5)).mean()).backward()
    for vectors in (features, quantizer.codebook):
        used = vectors.grad.norm(dim=1) > 0
        assert used.float().mean() > 0.5
        along = (vectors.grad * vectors).sum(1) / (vectors.grad.norm(dim=1) * vectors.norm(dim=1)).clamp_min(1e-30)
        assert along[used].abs().max() < 1e-2
    if quantizer.aligned:
        assert (quantizer.codebook.grad.norm(dim=1) > 0).all()  # of codes that no feature took too


def test_alignment_brings_unused_codes_to_the_features():
    """All features lie around one direction."""
    centre, used = torch.tensor([4.0, 0, 0, 0]), {}
    for name in ("vanilla", "wasserstein", "sliced"):
        quantizer = make(name, spread=False, l2_normalize=True)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
        for step in range(150):
            features = centre + draw(100, 4, seed=step) / 6
            loss = quantizer(features, update_statistics=True).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            used[name] = float(quantizer(centre + draw(2000, 4, seed=1000) / 6).statistics["utilization"])
    assert used["vanilla"] < 0.5
    assert min(used["wasserstein"], used["sliced"]) > 0.9, used


# ---- the largest product


@pytest.mark.parametrize("name", FREE)
@torch.no_grad()
def test_a_code_is_that_of_the_largest_product(name):
    quantizer, features = make(name, similarity="dot"), draw(2, 5, 5, 4)
    codes = quantizer.encode(features)
    assert torch.equal(codes, (features.double() @ quantizer.codebook.double().T).argmax(-1))
    assert not torch.equal(codes, make(name).encode(features))
    assert torch.equal(quantizer(features).quantized, quantizer.codebook[codes])


@torch.no_grad()
def test_products_choose_codes_in_each_layout():
    product = make(similarity="dot", num_groups=2, code_dim=8)
    features = draw(2, 4, 4, 8)
    for group, book in enumerate(product.codebooks):
        expected = (features[..., 4 * group : 4 * group + 4] @ book.codebook.T).argmax(-1)
        assert torch.equal(product.encode(features)[..., group], expected)
    scales = make(similarity="dot", scales=[1, 2, 4])
    features = draw(2, 4, 4, 4)
    codes = scales.encode(features)
    mean = features.mean((1, 2))
    assert torch.equal(codes[:, 0], (mean @ scales.book.codebook.T).argmax(-1))
    assert torch.equal(scales(features).quantized, scales.lookup(codes))
