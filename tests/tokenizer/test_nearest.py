"""The nearest-code search: exact, lowest index on ties, the same for any tile or batch size."""

import pytest
import torch

from wvq.tokenizer.nearest import exact_float32, nearest_codes


def draw(count, num_codes, dim, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator) + shift
    return features, torch.randn(num_codes, dim, generator=generator) + shift


def float64_distances(features, codebook):
    return (features.double()[:, None] - codebook.double()[None]).square().sum(-1)


@pytest.mark.parametrize(("dim", "num_codes"), [(2, 30), (4, 300), (8, 300), (32, 300)])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_equals_float64_brute_force_where_unambiguous(dim, num_codes, shift):
    features, codebook = draw(500, num_codes, dim, shift=shift)
    distances = float64_distances(features, codebook)
    best, second = distances.topk(2, largest=False).values.unbind(1)
    clear = second - best > 5e-5 * (1 + shift**2)
    assert clear.float().mean() > 0.8
    codes = nearest_codes(features, codebook)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[clear], distances.argmin(1)[clear])


def test_never_loses_more_than_float32_rounding():
    features, codebook = draw(2000, 1000, 8)
    distances = float64_distances(features, codebook)
    chosen = distances.gather(1, nearest_codes(features, codebook)[:, None]).squeeze(1)
    assert (chosen - distances.min(1).values).max() < 1e-5


def test_equals_the_untiled_float32_expression():
    features, codebook = draw(300, 257, 8)
    scores = codebook.square().sum(1) / 2 - features @ codebook.T
    assert torch.equal(nearest_codes(features, codebook), scores.argmin(1))


def test_takes_the_lowest_index_on_ties():
    features, codebook = draw(50, 6, 3)
    twice = torch.cat([codebook, codebook])
    assert torch.equal(nearest_codes(features, twice), nearest_codes(features, codebook))
    same = torch.ones(40, 3)
    assert torch.equal(nearest_codes(features, same), torch.zeros(50, dtype=torch.int64))


@pytest.mark.parametrize("tile_bytes", [1, 4 * 257, 4 * 257 * 7, 10**9])
def test_the_tile_size_does_not_matter(tile_bytes):
    features, codebook = draw(200, 257, 8)
    assert torch.equal(nearest_codes(features, codebook, tile_bytes), nearest_codes(features, codebook))


def test_the_batch_size_does_not_matter():
    features, codebook = draw(96, 512, 8)
    whole = nearest_codes(features, codebook)
    for size in (1, 5, 32):
        assert torch.equal(torch.cat([nearest_codes(part, codebook) for part in features.split(size)]), whole)


def test_low_precision_inputs_are_compared_in_float32():
    features, codebook = draw(200, 64, 8)
    features, codebook = features.bfloat16(), codebook.bfloat16()
    expected = nearest_codes(features.float(), codebook.float())
    assert torch.equal(nearest_codes(features, codebook), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(features.float(), codebook.float()), expected)


@pytest.fixture
def _same_precision_afterwards():
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    yield
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision


@pytest.mark.usefixtures("_same_precision_afterwards")
def test_leaves_the_matmul_precision_as_it_was():
    before = torch.get_float32_matmul_precision()
    for precision in ("high", "medium", before):
        torch.set_float32_matmul_precision(precision)
        nearest_codes(*draw(4, 4, 2))
        assert torch.get_float32_matmul_precision() == precision


@pytest.mark.usefixtures("_same_precision_afterwards")
def test_works_where_the_precision_was_set_for_one_backend():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    inside = []
    with exact_float32("cpu"):
        inside.append(torch.backends.cuda.matmul.fp32_precision)
    features, codebook = draw(40, 8, 4)
    assert torch.equal(nearest_codes(features, codebook), float64_distances(features, codebook).argmin(1))
    assert inside == ["ieee"]
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_no_features_give_no_codes():
    codes = nearest_codes(torch.zeros(0, 4), torch.zeros(3, 4))
    assert codes.shape == (0,)
    assert codes.dtype == torch.int64


@pytest.mark.parametrize(("features", "codebook"), [((5, 3), (7, 4)), ((5, 3, 1), (7, 3)), ((5, 3), (7,))])
def test_other_shapes_are_an_error_that_names_them(features, codebook):
    with pytest.raises(ValueError, match=r"must be \(N, D\) and \(K, D\)"):
        nearest_codes(torch.zeros(features), torch.zeros(codebook))
