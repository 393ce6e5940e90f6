"""Quantizers behind their one interface: shapes, gradients, exact lookup, loss weights, statistics."""

import copy
import math

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.tokenizer.quantizers.features import saved_and_read, spread_codes
from wvq.errors import DataError
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.alignment import gaussian_wasserstein
from wvq.tokenizer.quantizers.registry import QUANTIZERS, build_quantizer

NAMES = sorted(QUANTIZERS)
ALIGNED = ("wasserstein", "sliced", "mmd")
GRIDS = ("fsq", "lfq")
STATEFUL = ("affine", "ema", "online", "wasserstein")
GRADIENT_CODEBOOKS = ("affine", "mmd", "online", "sliced", "vanilla", "wasserstein")
DIM = 4  # of each codebook
WEIGHTS = {
    "vanilla": {"codebook_weight": 1.0, "commitment_weight": 1.0},
    "ema": {"commitment_weight": 1.0},
    "online": {"codebook_weight": 1.0, "commitment_weight": 1.0},
    "linear": {"codebook_weight": 1.0, "commitment_weight": 1.0},
    "fsq": {},
    "lfq": {"commitment_weight": 0.25, "entropy_weight": 0.1},
    "wasserstein": {"codebook_weight": 1.0, "commitment_weight": 0.1, "alignment_weight": 0.5},
    "sliced": {"codebook_weight": 1.0, "commitment_weight": 0.1, "alignment_weight": 0.5},
    "mmd": {"codebook_weight": 1.0, "commitment_weight": 0.1, "alignment_weight": 0.5},
    "affine": {"codebook_weight": 1.0, "commitment_weight": 0.1},
}


def configure(name, groups=1, dim=DIM, **fields):
    shape = {"num_codes": 48, "levels": [3, 4, 2, 2]} if name == "fsq" else {"num_codes": 16}
    fields = {"window_size": 100, "affine_interval": 2, "num_samples": 12, **shape, **fields}
    return WassersteinVQConfig(image_size=16, quantizer=name, code_dim=dim * groups, num_groups=groups, **fields)


def make(name, groups=1, spread=True, **fields):
    quantizer = build_quantizer(configure(name, groups, **fields))
    torch.manual_seed(1)
    quantizer.reset_codebook()
    if spread:
        spread_codes(quantizer)
    return quantizer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed, call, *args, **kwargs):
    torch.manual_seed(seed)  # some alignments draw directions or samples
    return call(*args, **kwargs)


def train_step(quantizer, seed, features=None):
    features = draw(2, 3, 4, quantizer.dim, seed=seed) if features is None else features
    output = seeded(seed, quantizer, features.requires_grad_(), update_statistics=True)
    quantizer.zero_grad()
    (output.loss + output.quantized.mean()).backward()
    with torch.no_grad():
        for parameter in quantizer.codebook_parameters():
            if parameter.grad.isfinite().all():  # as the training loop skips such a step
                parameter -= 0.1 * parameter.grad
    return output.loss.detach()


def remembered(quantizer):
    """Copies of all that a quantizer carries from one step to the next."""
    return copy.deepcopy((dict(quantizer.state_dict()), quantizer.training_state()))


def same(a, b):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in pairs)


def distinct_codes(quantizer):
    groups = quantizer.num_codebooks
    orders = [torch.randperm(quantizer.num_codes, generator=torch.Generator().manual_seed(g)) for g in range(groups)]
    return torch.stack(orders, dim=-1) if groups > 1 else orders[0]


def nearest(quantizer, vectors):
    """Codes of vectors that lie in the space of the codes already."""
    if quantizer.num_codebooks == 1:
        return quantizer.assign(vectors)
    parts = vectors.chunk(quantizer.num_codebooks, dim=-1)
    return torch.stack([one.assign(part) for one, part in zip(quantizer.codebooks, parts, strict=True)], dim=-1)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=[1, 2], ids=["one", "product"])
def groups(request):
    return request.param


def test_shapes_and_types(name, groups):
    quantizer, features = make(name, groups), draw(2, 3, 5, DIM * groups)
    output = quantizer(features)
    assert output.quantized.shape == features.shape
    assert output.codes.shape == ((2, 3, 5) if groups == 1 else (2, 3, 5, 2))
    assert output.codes.dtype == torch.int64
    assert 0 <= output.codes.min() <= output.codes.max() < quantizer.num_codes
    assert len(output.codes.unique()) > 4
    assert output.loss.shape == ()
    assert all(value.shape == () and not value.requires_grad for value in output.losses.values())
    assert all(value.shape == () and not value.requires_grad for value in output.statistics.values())
    assert set(output.statistics) == {"quantization_error", "utilization", "perplexity"}


def test_quantized_equals_the_lookup_to_the_bit(name, groups):
    quantizer = make(name, groups)
    output = quantizer(100 * draw(2, 4, 4, DIM * groups) + 1)
    assert torch.equal(output.quantized, quantizer.lookup(output.codes))


def test_encode_gives_the_codes_of_forward(name, groups):
    quantizer, features = make(name, groups), draw(2, 4, 4, DIM * groups)
    assert torch.equal(quantizer.encode(features), quantizer(features).codes)


def test_vectors_of_codes_are_coded_as_themselves(name, groups):
    quantizer = make(name, groups)
    codes = distinct_codes(quantizer)
    vectors = quantizer.lookup(codes)
    assert vectors.shape == (quantizer.num_codes, DIM * groups)
    assert torch.equal(nearest(quantizer, vectors), codes)


def test_codes_are_the_nearest(name, groups):
    quantizer = make(name, groups)
    vectors = quantizer.prepare(draw(40, DIM * groups))
    book = quantizer.lookup(distinct_codes(quantizer)).chunk(groups, dim=-1)
    chosen = quantizer.lookup(nearest(quantizer, vectors)).chunk(groups, dim=-1)
    for part, codes, picked in zip(vectors.chunk(groups, dim=-1), book, chosen, strict=True):
        least = torch.cdist(part, codes).min(1).values
        torch.testing.assert_close((part - picked).norm(dim=1), least, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*GRIDS}))
def test_vectors_of_twin_codes_come_back(name, groups):
    quantizer = make(name, groups)
    for key, codebook in quantizer.state_dict().items():
        if key.endswith("codebook"):
            codebook[8:] = codebook[:8]
    vectors = quantizer.lookup(distinct_codes(quantizer))
    assert torch.equal(quantizer.lookup(nearest(quantizer, vectors)), vectors)


def test_the_gradient_passes_straight_through(name, groups):
    shape = (2, 4, 4, DIM * groups)
    features, incoming = draw(*shape).requires_grad_(), draw(*shape, seed=5)
    quantizer = make(name, groups)
    quantizer(features).quantized.backward(incoming)
    expected = incoming
    if name == "fsq":  # onto the bounded features
        again = features.detach().reshape(-1, DIM * groups).requires_grad_()
        (expected,) = torch.autograd.grad(quantizer.prepare(again), again, incoming.reshape(again.shape))
    assert torch.equal(features.grad, expected.reshape(shape))
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_the_loss_is_the_weighted_sum_of_its_terms(name, groups):
    fields = {key: 0.3 + 0.2 * i for i, key in enumerate(WEIGHTS[name])}
    output = make(name, groups, **fields)(draw(2, 4, 4, DIM * groups))
    assert {f"{term}_weight" for term in output.losses} == set(WEIGHTS[name])
    expected = sum((fields[f"{term}_weight"] * value for term, value in output.losses.items()), torch.zeros(()))
    torch.testing.assert_close(output.loss.detach(), expected)


def test_squared_terms_equal_their_definition(name, groups):
    quantizer, features = make(name, groups), draw(24, DIM * groups)
    output = quantizer(features)
    squared = (features - output.quantized).square().mean()
    for term in {"codebook", "commitment"} & set(output.losses):
        torch.testing.assert_close(output.losses[term], squared)


def test_published_weights(name, groups):
    assert make(name, groups).weights == WEIGHTS[name]


@pytest.mark.parametrize("name", sorted({*NAMES} - {"fsq"}))
def test_the_config_overrides_each_weight(name, groups):
    for key in WEIGHTS[name]:
        for value in (0.0, 2):
            assert make(name, groups, **{key: value}).weights == {**WEIGHTS[name], key: value}


@pytest.mark.parametrize(("name", "term"), [*((name, "alignment") for name in ALIGNED), ("lfq", "entropy")])
def test_terms_of_weight_zero_are_not_computed(name, term):
    assert term not in make(name, **{f"{term}_weight": 0.0})(draw(2, 4, 4, DIM)).losses


@pytest.mark.parametrize("name", [*GRADIENT_CODEBOOKS, "linear"])
def test_gradients_of_the_loss_reach_their_side(name, groups):
    def gradients(**weights):
        features = draw(2, 4, 4, DIM * groups).requires_grad_()
        quantizer = make(name, groups, **weights)
        quantizer(features).loss.backward()
        return features.grad.abs().max(), [p.grad.abs().max() for p in quantizer.codebook_parameters()]

    aligned = {"alignment_weight": 0.0} if name in ALIGNED else {}
    features, codebooks = gradients(codebook_weight=1.0, commitment_weight=0.0)
    assert features == 0
    assert min(codebooks) > 0
    features, codebooks = gradients(codebook_weight=0.0, commitment_weight=1.0, **aligned)
    assert features > 0
    assert max(codebooks) == 0


@pytest.mark.parametrize("name", GRADIENT_CODEBOOKS)
def test_an_alignment_moves_unused_codes(name):
    quantizer = make(name, num_samples=100)
    with torch.no_grad():
        quantizer.codebook[-1] = 9.0  # nobody's nearest
    output = quantizer(draw(2, 4, 4, DIM))
    assert 15 not in output.codes
    output.loss.backward()
    assert (quantizer.codebook.grad[-1].abs().max() > 0) == (name in ALIGNED)


def test_trained_parameters_of_the_codebook(name, groups):
    shapes = {"ema": [], "fsq": [], "lfq": [], "linear": [(DIM, DIM), (DIM,)]}.get(name, [(16, DIM)])
    quantizer = make(name, groups)
    assert [tuple(p.shape) for p in quantizer.codebook_parameters()] == shapes * groups
    assert [p for p in quantizer.parameters() if p.requires_grad] == quantizer.codebook_parameters()


@pytest.mark.parametrize("name", sorted({*NAMES} - {*GRIDS}))
def test_starts_of_the_codebook(name):
    codebook = make(name, num_codes=4096, dim=8, spread=False).codebook.detach()
    if name in ("vanilla", "online"):
        assert codebook.abs().max() <= 1 / 4096
    std = {"vanilla": 1 / 4096 / 3**0.5, "online": 1 / 4096 / 3**0.5, "ema": 1 / 4096, "linear": 1.0}.get(name, 0.01)
    assert codebook.std().item() == pytest.approx(std, rel=0.03)


def test_statistics_of_a_batch():
    quantizer = make("vanilla", num_codes=4, dim=1)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [9.0]]))
    output = quantizer(torch.tensor([[0.1], [0.0], [1.2], [2.0]]))
    assert output.codes.tolist() == [0, 0, 1, 2]
    assert output.statistics["quantization_error"].item() == pytest.approx((0.01 + 0.04) / 4, rel=1e-5)
    assert output.statistics["utilization"].item() == 0.75
    perplexity = math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert output.statistics["perplexity"].item() == pytest.approx(perplexity, rel=1e-5)


def test_the_quantization_error_sums_over_dims(name, groups):
    quantizer, features = make(name, groups), draw(24, DIM * groups)
    output = quantizer(features)
    expected = (quantizer.prepare(features) - output.quantized).square().sum(-1).mean()
    torch.testing.assert_close(output.statistics["quantization_error"], expected)


def test_is_computed_in_float32_whatever_the_precision(name, groups):
    quantizer, features = make(name, groups), draw(2, 4, 4, DIM * groups)
    expected = seeded(0, quantizer, features)
    with torch.autocast("cpu", torch.bfloat16):
        output = seeded(0, quantizer, features)
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantized, expected.quantized)
    assert torch.equal(output.loss, expected.loss)
    half = quantizer(features.bfloat16())
    assert half.quantized.dtype == torch.bfloat16
    assert half.loss.dtype == torch.float32
    assert half.loss.isfinite()
    assert torch.equal(half.codes, quantizer.encode(features.bfloat16().float()))


def test_encoding_and_lookup_are_the_same_under_autocast(name, groups):
    quantizer, features = make(name, groups), draw(2, 4, 4, DIM * groups)
    codes = quantizer.encode(features)
    vectors = quantizer.lookup(codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(features), codes)
        assert torch.equal(quantizer.lookup(codes), vectors)


def test_training_resumes_from_the_saved_state(name, groups):
    quantizer, other, fresh = (make(name, groups) for _ in range(3))
    for seed in range(3):
        train_step(quantizer, seed)
    saved = saved_and_read(quantizer)
    other.load_state_dict(saved["weights"])
    other.load_training_state(copy.deepcopy(saved["state"]), torch.device("cpu"))
    fresh.load_state_dict(saved["weights"])
    for seed in range(3, 6):
        assert torch.equal(train_step(other, seed), train_step(quantizer, seed))
        train_step(fresh, seed)
    assert same(remembered(other), remembered(quantizer))
    assert same(fresh.state_dict(), quantizer.state_dict()) == (name not in STATEFUL)


def test_only_training_steps_leave_a_trace(name, groups):
    quantizer, features = make(name, groups), draw(2, 4, 4, DIM * groups, seed=8)
    train_step(quantizer, 0)
    before = remembered(quantizer)
    quantizer(3 + features)
    quantizer.encode(3 + features)
    assert same(remembered(quantizer), before)
    quantizer(3 + features, update_statistics=True)
    assert same(remembered(quantizer), before) == (name not in STATEFUL)


@pytest.mark.parametrize("good_steps", [0, 1, 2, 3])
def test_a_batch_with_nan_changes_nothing(name, groups, good_steps):
    quantizer, twin = (make(name, groups, window_size=10_000, affine_interval=1) for _ in range(2))
    for seed in range(good_steps):
        train_step(quantizer, seed)
        train_step(twin, seed)
    bad = draw(2, 3, 4, DIM * groups)
    bad[1, 2, 3] = torch.nan
    bad[0, 0, 0] = torch.inf
    train_step(quantizer, 99, bad)
    assert all(torch.as_tensor(x).isfinite().all() for x in tree_leaves(remembered(quantizer)))
    assert same(quantizer.state_dict(), twin.state_dict())
    for seed in range(10, 13):
        assert torch.equal(train_step(quantizer, seed), train_step(twin, seed))
    assert same(quantizer.state_dict(), twin.state_dict())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_are_refused(name, groups, value):
    quantizer, features = make(name, groups), draw(2, 4, 4, DIM * groups)
    features[1, 2, 3, -1] = value
    for call in (quantizer, quantizer.encode):
        with pytest.raises(DataError, match=r"^features must be finite"):
            call(features)


@pytest.mark.parametrize("width", [1, 3, 7, 9, 12])
def test_features_of_another_width_are_refused(name, groups, width):
    quantizer = make(name, groups)
    for call in (quantizer, quantizer.encode):
        with pytest.raises(DataError, match=r"features have \d+ dims, but code_dim is \d+"):
            call(draw(2, 4, 4, width))


def test_a_product_equals_its_codebooks_on_their_parts_of_the_features(name):
    product, features = make(name, 3), draw(2, 4, 4, 3 * DIM)
    singles = [make(name) for _ in range(3)]
    for single, group in zip(singles, product.codebooks, strict=True):
        single.load_state_dict(group.state_dict())
    expected = seeded(0, lambda: [q(part) for q, part in zip(singles, features.split(DIM, -1), strict=True)])
    output = seeded(0, product, features)
    assert torch.equal(output.codes, torch.stack([one.codes for one in expected], dim=-1))
    assert torch.equal(output.quantized, torch.cat([one.quantized for one in expected], dim=-1))
    torch.testing.assert_close(output.loss, sum(one.loss for one in expected) / 3)
    for term, value in output.losses.items():
        torch.testing.assert_close(value, sum(one.losses[term] for one in expected) / 3)
    for figure, share in (("quantization_error", 1), ("utilization", 3), ("perplexity", 3)):
        torch.testing.assert_close(output.statistics[figure], sum(one.statistics[figure] for one in expected) / share)


def test_only_training_steps_count_in_the_window():
    quantizer, first, second = make("wasserstein"), draw(2, 4, 4, DIM), 3 + draw(2, 4, 4, DIM, seed=1)
    quantizer(first, update_statistics=True)
    alone = quantizer(second).losses["alignment"]
    assert len(quantizer.window) == 32
    joined = quantizer(second, update_statistics=True).losses["alignment"]
    both = torch.cat([first, second]).reshape(-1, DIM).double()
    centred = both - both.mean(0)
    expected = gaussian_wasserstein(both.mean(0), centred.T @ centred / 64, quantizer.codebook)
    torch.testing.assert_close(joined, expected.detach())
    assert abs(alone - joined) > 0.1
    for seed in range(5):
        quantizer(draw(2, 4, 4, DIM, seed=seed), update_statistics=True)
    assert len(quantizer.window) == 128  # the shortest run of batches that covers 100
