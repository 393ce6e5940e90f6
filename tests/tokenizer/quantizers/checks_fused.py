"""The fused search gives the nearest codes; run by test_fused.py under Triton's interpreter, and on a GPU as it is."""

import pytest
import torch

from tests.tokenizer.quantizers.searching import draw, draw_near_ties, float64_distances, losses_of
from wvq.tokenizer.quantizers import fused
from wvq.tokenizer.quantizers.nearest import nearest_codes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the interpreter


def search(features, codebook, squares=True):
    codes = fused.search(features.to(DEVICE), codebook.to(DEVICE), squares)
    assert codes is not None, "the kernels do not run"
    assert codes.dtype == torch.int64
    return codes.cpu()


def losses(features, codebook, codes):
    return losses_of(features, codebook, codes, float64_distances(features, codebook).argmin(1))


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 13, 16, 17, 32, 33, 100])
@pytest.mark.parametrize(("count", "num_codes"), [(1, 1), (70, 31), (3, 300)])
def test_the_codes_are_those_of_the_tiled_form(count, num_codes, dim):
    features, codebook = draw(count, num_codes, dim)
    assert torch.equal(search(features, codebook), nearest_codes(features, codebook, tile_bytes=10**6))


@pytest.mark.parametrize("dim", [2, 8, 24, 256])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_nothing_is_lost_but_the_rounding_of_float32(dim, shift):
    features, codebook = draw(70, 140, dim, shift=shift)
    assert losses(features, codebook, search(features, codebook)).max() < 1e-6
    features, codebook = draw_near_ties(70, 140, dim)
    assert losses(features, codebook, search(features, codebook)).max() < 1e-6


@pytest.mark.parametrize("dim", [8, 40])
def test_the_lowest_index_wins_ties(dim):
    features, codebook = draw(50, 40, dim)
    once = search(features, codebook)
    for copies in (2, 5):  # within a tile, and in several
        assert torch.equal(search(features, codebook.repeat(copies, 1)), once)
    assert torch.equal(search(features, torch.ones(400, dim)), torch.zeros(50, dtype=torch.int64))


@pytest.mark.parametrize("dim", [1, 8, 16, 17, 40])
def test_without_squares_the_codes_are_those_of_the_largest_product(dim):
    features, codebook = draw(70, 300, dim)
    codes = search(features, codebook, squares=False)
    assert torch.equal(codes, nearest_codes(features, codebook, tile_bytes=10**6, similarity="dot"))
    assert torch.equal(search(features, codebook.repeat(2, 1), squares=False), codes)
    negative = -torch.ones(3, dim)  # all products are below 0, that of what fills up a tile
    assert torch.equal(search(negative, torch.ones(5, dim), squares=False), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("dim", [4, 20])
def test_scores_of_zero_tie_whatever_their_sign(dim):
    codebook = torch.zeros(6, dim)
    codebook[1::2] *= -1
    assert torch.equal(search(torch.tensor([[1.0] * dim, [-1.0] * dim]), codebook), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("dim", [8, 40])
def test_how_a_search_is_cut_does_not_matter(monkeypatch, dim):
    features, codebook = draw_near_ties(140, 300, dim)
    whole = search(features, codebook)
    assert torch.equal(torch.cat([search(part, codebook) for part in features.split(61)]), whole)
    for programs in (1, 7):
        monkeypatch.setattr(fused, "_PROGRAMS", programs)
        assert torch.equal(search(features, codebook), whole)
    monkeypatch.setattr(fused, "_PIECE_BYTES", 4 * 64 * dim)
    assert torch.equal(search(features, codebook), whole)


@pytest.mark.parametrize("dim", [8, 40])
def test_values_that_are_not_finite_get_a_code_that_exists(dim):
    features, codebook = draw(40, 37, dim)
    features[0, 0], features[1, 1], features[2] = torch.inf, torch.nan, -torch.inf
    codes = search(features, codebook)
    assert 0 <= codes.min() <= codes.max() < 37
    assert torch.equal(codes[3:], search(features[3:], codebook))
    codebook[:] = torch.nan
    codes = search(features, codebook)
    assert 0 <= codes.min() <= codes.max() < 37


@pytest.mark.parametrize("dim", [8, 40])
def test_a_code_that_is_not_finite_is_not_chosen(dim):
    features, codebook = draw(40, 37, dim)
    expected = search(features, codebook[:20])
    codebook[20:30], codebook[30:] = torch.nan, torch.inf
    codebook[30:, 0] = -torch.inf
    assert torch.equal(search(features, codebook), expected)


def test_vectors_of_very_different_lengths_are_compared_in_float32():
    features, codebook = draw(60, 100, 40)
    for lengths in (1e-12, 1e12):
        assert torch.equal(search(lengths * features, lengths * codebook), search(features, codebook))
    features *= 10 ** torch.linspace(-6, 6, 60)[:, None]
    codebook *= 10 ** torch.linspace(-6, 6, 100)[:, None]
    codebook[7] = 0
    assert losses(features, codebook, search(features, codebook)).max() < 1e-6
    features[:, ::3] *= 1e-5
    assert losses(features, codebook, search(features, codebook)).max() < 1e-6


def test_no_features_have_no_codes():
    for dim in (8, 40):
        assert search(torch.zeros(0, dim), torch.zeros(3, dim)).shape == (0,)


def test_views_are_searched_as_they_are():
    for dim in (8, 40):
        features, codebook = draw(33, 50, 2 * dim)
        views = features[:, ::2], codebook[:, 1::2]
        assert torch.equal(search(*views), search(*(view.contiguous() for view in views)))
