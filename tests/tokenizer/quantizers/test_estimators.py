"""Gradient estimators: exact values forward, the gradient each promises backward, and no NaN where none is defined."""

import pytest
import torch
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.estimators import GRADIENT_ESTIMATORS, rotation, straight_through
from wvq.tokenizer.quantizers.registry import QUANTIZERS, build_quantizer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(estimate, features, vectors, incoming):
    features = features.clone().requires_grad_()
    estimate(features, vectors).backward(incoming)
    return features.grad


def rotation_matrix(source, target):
    """The rotation in the plane of two vectors that turns the direction of the first into that of the second."""
    u = source / source.norm()
    v = target / target.norm()
    cosine = u @ v
    across = v - cosine * u
    across = across / across.norm()
    sine = v @ across
    generator = torch.outer(across, u) - torch.outer(u, across)
    plane = torch.outer(u, u) + torch.outer(across, across)
    return torch.eye(len(u), dtype=u.dtype) + sine * generator + (cosine - 1) * plane


def test_two_estimators_have_names():
    assert {"ste": straight_through, "rotation": rotation} == GRADIENT_ESTIMATORS


@pytest.mark.parametrize("estimate", [straight_through, rotation])
def test_the_vectors_come_out_to_the_bit(estimate):
    features, vectors = 1e3 * draw(50, 5) + 7, 1e-3 * draw(50, 5, seed=1)
    assert torch.equal(estimate(features, vectors), vectors)
    assert torch.equal(estimate(features.requires_grad_(), vectors), vectors)


@pytest.mark.parametrize("estimate", [straight_through, rotation])
def test_no_gradient_reaches_the_vectors(estimate):
    features, vectors = draw(50, 5).requires_grad_(), draw(50, 5, seed=1).requires_grad_()
    estimate(features, vectors).sum().backward()
    assert features.grad is not None
    assert vectors.grad is None


@pytest.mark.parametrize("estimate", [straight_through, rotation])
def test_writing_into_the_output_spares_the_vectors(estimate):
    vectors = draw(50, 5, seed=1)
    estimate(draw(50, 5), vectors).zero_()
    assert torch.equal(vectors, draw(50, 5, seed=1))


def test_straight_through_copies_the_gradient():
    incoming = draw(50, 5, seed=2)
    assert torch.equal(gradient(straight_through, draw(50, 5), draw(50, 5, seed=1), incoming), incoming)


@pytest.mark.parametrize("dim", [2, 3, 8, 64])
def test_rotation_equals_the_published_code(dim):
    features, vectors, incoming = draw(200, dim), 3 * draw(200, dim, seed=1), draw(200, dim, seed=2)
    theirs = features.clone().requires_grad_()
    value = rotate_to(theirs, vectors)
    value.backward(incoming)
    torch.testing.assert_close(rotation(features, vectors), value.detach(), rtol=1e-4, atol=1e-4)
    # Close to opposite directions, both lose digits.
    ours = gradient(rotation, features, vectors, incoming)
    aligned = torch.cosine_similarity(features, vectors) > -0.99
    assert aligned.sum() > 150
    torch.testing.assert_close(ours[aligned], theirs.grad[aligned], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_rotation_passes_the_gradient_through_the_explicit_matrix(dim):
    features, vectors, incoming = (draw(40, dim, seed=seed).double() for seed in range(3))
    expected = torch.stack(
        [
            (e.norm() / z.norm()) * rotation_matrix(z, e).T @ g
            for z, e, g in zip(features, vectors, incoming, strict=True)
        ]
    )
    torch.testing.assert_close(gradient(rotation, features, vectors, incoming), expected, rtol=1e-6, atol=1e-9)


def test_rotation_keeps_the_angle_between_gradient_and_vector():
    features, vectors, incoming = draw(100, 6).double(), draw(100, 6, seed=1).double(), draw(100, 6, seed=2).double()
    turned = gradient(rotation, features, vectors, incoming)
    torch.testing.assert_close(
        torch.cosine_similarity(turned, features), torch.cosine_similarity(incoming, vectors), rtol=1e-6, atol=1e-6
    )
    scale = vectors.norm(dim=1) / features.norm(dim=1)
    torch.testing.assert_close(turned.norm(dim=1), scale * incoming.norm(dim=1), rtol=1e-6, atol=1e-9)


def test_rotation_of_features_on_their_vectors_is_straight_through():
    features, incoming = draw(50, 4), draw(50, 4, seed=2)
    torch.testing.assert_close(gradient(rotation, features, features.clone(), incoming), incoming, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(rotation, features, 3 * features, incoming), 3 * incoming, rtol=1e-4, atol=1e-5)


UNDEFINED = {
    "zero features": (torch.zeros(8, 4), draw(8, 4)),
    "zero vectors": (draw(8, 4), torch.zeros(8, 4)),
    "both zero": (torch.zeros(8, 4), torch.zeros(8, 4)),
    "opposite": (draw(8, 4), -2 * draw(8, 4)),
    "nearly zero": (1e-20 * draw(8, 4), draw(8, 4, seed=1)),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_where_no_rotation_is_defined_the_gradient_is_copied(case):
    features, vectors = UNDEFINED[case]
    incoming = draw(8, 4, seed=2)
    assert torch.equal(gradient(rotation, features, vectors, incoming), incoming)
    assert torch.equal(rotation(features, vectors), vectors)


def test_undefined_rows_leave_the_others_as_they_are():
    features, vectors, incoming = draw(9, 4), draw(9, 4, seed=1), draw(9, 4, seed=2)
    expected = gradient(rotation, features, vectors, incoming)
    features[4] = 0
    mixed = gradient(rotation, features, vectors, incoming)
    assert torch.equal(mixed[4], incoming[4])
    others = torch.arange(9) != 4
    torch.testing.assert_close(mixed[others], expected[others])


@pytest.mark.parametrize("length", [1e-4, 1e-2, 1e2, 1e4])
def test_rotation_is_finite_at_any_length(length):
    turned = gradient(rotation, length * draw(100, 3), draw(100, 3, seed=1), draw(100, 3, seed=2))
    assert turned.isfinite().all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_a_quantizer_takes_the_estimator_of_its_config(name, groups):
    shape = {"num_codes": 16, "levels": [4, 2, 2]} if name == "fsq" else {"num_codes": 8}
    shape |= {"code_dim": 3 * groups, "num_groups": groups}
    incoming = draw(30, 3 * groups, seed=2)
    for estimator, estimate in GRADIENT_ESTIMATORS.items():
        config = WassersteinVQConfig(image_size=16, quantizer=name, gradient_estimator=estimator, **shape)
        quantizer = build_quantizer(config)
        torch.manual_seed(0)
        quantizer.reset_codebook()
        features = draw(30, 3 * groups).requires_grad_()
        output = quantizer(features)
        output.quantized.backward(incoming)
        again = draw(30, 3 * groups).requires_grad_()
        parts = zip(quantizer.prepare(again).chunk(groups, 1), output.quantized.detach().chunk(groups, 1), strict=True)
        torch.cat([estimate(part, vectors) for part, vectors in parts], dim=1).backward(incoming)
        torch.testing.assert_close(features.grad, again.grad)
        assert torch.equal(output.quantized, quantizer.lookup(output.codes))
