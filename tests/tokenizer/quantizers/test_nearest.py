"""The nearest-code search: exact, lowest index on ties, the same for any form, tile, batch and number of threads."""

import functools
import sys

import pytest
import torch

from tests.processes import run
from tests.tokenizer.quantizers.searching import (
    draw,
    draw_near_ties,
    float64_distances,
    losses_of,
    products_in_order,
    scores_in_order,
)
from wvq.tokenizer.quantizers import native
from wvq.tokenizer.quantizers.nearest import SIMILARITIES, cache_bytes, exact_float32, nearest_codes


@pytest.fixture
def _compiled():
    if native.library() is None:
        pytest.skip("the compiled search cannot be had here: no C++ compiler, or WVQ_NATIVE=0")


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


@pytest.mark.parametrize("tile_bytes", [None, 1, 10**7])
@pytest.mark.parametrize(("dim", "num_codes"), [(1, 7), (4, 300), (12, 300), (256, 1000)])
def test_the_largest_product_equals_float64_where_unambiguous(dim, num_codes, tile_bytes):
    features, codebook = draw(400, num_codes, dim)
    codebook *= torch.linspace(0.1, 3, num_codes)[:, None]  # the nearest code would be another one
    products = features.double() @ codebook.double().T
    best, second = products.topk(2).values.unbind(1)
    clear = best - second > 1e-5 * dim**0.5
    assert clear.float().mean() > 0.8
    codes = nearest_codes(features, codebook, tile_bytes, "dot")
    assert torch.equal(codes[clear], products.argmax(1)[clear])
    assert (products.max(1).values - products.gather(1, codes[:, None])[:, 0]).max() < 1e-5 * dim**0.5
    assert not torch.equal(codes, nearest_codes(features, codebook))


@pytest.mark.parametrize("tile_bytes", [None, 1])
def test_the_largest_product_takes_the_lowest_index_on_ties_and_any_sign(tile_bytes):
    features, codebook = draw(50, 6, 3)
    once = nearest_codes(features, codebook, tile_bytes, "dot")
    assert torch.equal(nearest_codes(features, codebook.repeat(3, 1), tile_bytes, "dot"), once)
    negative = nearest_codes(-torch.ones(4, 3), torch.ones(5, 3), tile_bytes, "dot")  # no product is above 0
    assert torch.equal(negative, torch.zeros(4, dtype=torch.int64))


@pytest.mark.usefixtures("_compiled")
def test_the_compiled_search_adds_up_products_in_order():
    for dim in (1, 8, 12, 64):
        features, codebook = draw_near_ties(301, 100, dim, seed=dim)
        codes = nearest_codes(features, codebook, similarity="dot")
        assert torch.equal(codes, products_in_order(features, codebook).argmax(1)), dim


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


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("num_codes", [1, 2, 15, 16, 17, 100])
def test_the_compiled_search_adds_up_scores_in_order(num_codes):
    for dim in range(1, 65):
        features, codebook = draw_near_ties(301, num_codes, dim, seed=dim)
        assert torch.equal(nearest_codes(features, codebook), scores_in_order(features, codebook).argmin(1)), dim


@functools.cache
def products_are_in_order() -> bool:
    """Whether the products of this processor's library add up each score from the first dim to the last."""
    for dim in range(1, 65):
        features, codebook = draw_near_ties(304, 16, dim, seed=dim)
        scores = torch.addmm(codebook.square().sum(1) / 2, features, codebook.T, alpha=-1)
        if not torch.equal(scores, scores_in_order(features, codebook)):
            return False
    return True


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("num_codes", [1, 2, 15, 16, 17, 1000])
def test_the_compiled_search_gives_the_codes_of_the_tiled_one_on_near_ties(num_codes):
    """The same codes, or where this processor's products are in another order, codes as near."""
    for dim in range(1, 65):
        features, codebook = draw_near_ties(301, num_codes, dim, seed=dim)
        compiled = nearest_codes(features, codebook)
        for tile_bytes in (1, 10**7):
            tiled = nearest_codes(features, codebook, tile_bytes)
            assert losses_of(features, codebook, tiled, compiled).abs().max() < 1e-6, (dim, tile_bytes)
            if products_are_in_order():
                assert torch.equal(tiled, compiled), (dim, tile_bytes)


@pytest.mark.parametrize("tile_bytes", [None, 1, 4 * 300 * 16 * 3, 10**7])
@pytest.mark.parametrize(("num_codes", "dim"), [(17, 3), (300, 33)])
def test_batches_and_threads_do_not_matter_on_near_ties(tile_bytes, num_codes, dim):
    features, codebook = draw_near_ties(500, num_codes, dim)
    whole = nearest_codes(features, codebook)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for size in (1, 7, 500):
            parts = [nearest_codes(part, codebook, tile_bytes) for part in features.split(size)]
            assert torch.equal(torch.cat(parts), whole), (threads, size)


MEASURE = """
import resource, torch
from wvq.tokenizer.quantizers.nearest import nearest_codes

generator = torch.Generator().manual_seed(0)
features, codebook = torch.randn(2048, 8, generator=generator), torch.randn(100_000, 8, generator=generator)
nearest_codes(features[:64], codebook[:64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codes = nearest_codes(features, codebook, similarity="SIMILARITY")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(codes.unique()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("native_code", ["1", "0"])
def test_many_codes_need_far_less_memory_than_all_scores(native_code, similarity):
    done = run(["-c", MEASURE.replace("SIMILARITY", similarity)], variables={"WVQ_NATIVE": native_code})
    assert done.returncode == 0, done.stderr
    kilobytes, found = map(int, done.stdout.split())
    assert kilobytes < 128 * 1024  # all scores would take 800 MB
    assert found > 500


def test_the_cache_of_a_device_has_a_size():
    assert cache_bytes(torch.device("cpu")) >= 2**14
    assert cache_bytes(torch.device("meta")) == 2**20


def test_low_precision_inputs_are_compared_in_float32():
    features, codebook = draw(200, 64, 8)
    features, codebook = features.bfloat16(), codebook.bfloat16()
    expected = nearest_codes(features.float(), codebook.float())
    assert torch.equal(nearest_codes(features, codebook), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(features.float(), codebook.float()), expected)


@pytest.fixture
def _same_precision_afterwards():
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.cudnn.conv)
    backends += (torch.backends.mkldnn.conv,)
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
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    inside = []
    with exact_float32("cpu"):
        inside += [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]
    features, codebook = draw(40, 8, 4)
    assert torch.equal(nearest_codes(features, codebook), float64_distances(features, codebook).argmin(1))
    assert inside == ["ieee", "ieee"]
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.cudnn.allow_tf32  # torch refuses to read its older switch after a mix of the two


def test_no_features_give_no_codes():
    codes = nearest_codes(torch.zeros(0, 4), torch.zeros(3, 4))
    assert codes.shape == (0,)
    assert codes.dtype == torch.int64


@pytest.mark.parametrize(("features", "codebook"), [((5, 3), (7, 4)), ((5, 3, 1), (7, 3)), ((5, 3), (7,))])
def test_other_shapes_are_an_error_that_names_them(features, codebook):
    with pytest.raises(ValueError, match=r"must be \(N, D\) and \(K, D\)"):
        nearest_codes(torch.zeros(features), torch.zeros(codebook))


@pytest.mark.parametrize("tile_bytes", [None, 64])
def test_an_empty_codebook_is_an_error(tile_bytes):
    with pytest.raises(ValueError, match="at least one code"):
        nearest_codes(torch.zeros(5, 3), torch.zeros(0, 3), tile_bytes)


@pytest.mark.parametrize("tile_bytes", [None, 1])
def test_an_infinite_feature_gets_a_code_that_exists(tile_bytes):
    features, codebook = draw(5, 17, 2)
    features[0, 0], features[1, 1] = float("inf"), float("nan")
    codes = nearest_codes(features, codebook, tile_bytes)
    assert 0 <= codes.min() <= codes.max() < 17
    assert torch.equal(codes[2:], nearest_codes(features[2:], codebook))
