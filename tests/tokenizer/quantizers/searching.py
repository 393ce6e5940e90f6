"""What the tests of the nearest-code search share: features and codebooks, also full of near-ties, and distances."""

import torch


def draw(count, num_codes, dim, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator) + shift
    return features, torch.randn(num_codes, dim, generator=generator) + shift


def draw_near_ties(count, num_codes, dim, seed=0):
    """Codes in groups that differ by about 1e-7, and features of which half lie on a code."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, num_codes // 5), dim, generator=generator)
    codebook = centres[torch.arange(num_codes) % len(centres)]
    codebook += 1e-7 * torch.randn(num_codes, dim, generator=generator)
    features = torch.randn(count, dim, generator=generator)
    features[::2] = codebook[torch.randint(0, num_codes, (len(features[::2]),), generator=generator)]
    return features, codebook


def float64_distances(features, codebook):
    return (features.double()[:, None] - codebook.double()[None]).square().sum(-1)


def losses_of(features, codebook, codes, others):
    """How much further codes are than others, as a share of the squares that float32 adds up to a score."""
    wide, vectors, references = features.double(), codebook[codes].double(), codebook[others].double()
    further = (wide - vectors).square().sum(1) - (wide - references).square().sum(1)
    return further / (wide.square().sum(1) + vectors.square().sum(1))


def products_in_order(features, codebook):
    """Products (N, K), each summed from the first dim to the last with one rounding a dim."""
    dots = torch.zeros(len(features), len(codebook))
    for values, codes in zip(features.double().T, codebook.double().T, strict=True):
        dots = (dots + torch.outer(values, codes)).float()  # of float32 factors, which float64 multiplies exactly
    return dots


def scores_in_order(features, codebook):
    """Scores (N, K) of the search for the nearest code."""
    return codebook.square().sum(1) / 2 - products_in_order(features, codebook)
