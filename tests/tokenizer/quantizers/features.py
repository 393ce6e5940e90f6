"""What the tests of the quantizers share: features and codebooks in float64, and a state by way of a file."""

import io

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated(count, dim, seed=0, scale=1.0, shift=0.0):
    """Features (count, dim) with a full random covariance, float64."""
    draws = torch.randn(count, dim, generator=generator(seed), dtype=torch.float64)
    mix = torch.randn(dim, dim, generator=generator(seed + 100), dtype=torch.float64)
    return scale * draws @ mix + shift


def moments(features):
    features = features.double()
    centred = features - features.mean(0)
    return features.mean(0), centred.T @ centred / len(features)


def degenerate_inputs():
    spread, flat = correlated(100, 4), correlated(100, 4)
    flat[:, 2:] = 1.0
    return {
        "features without two dims": (flat, correlated(30, 4, seed=2)),
        "codes without two dims": (spread, flat[:30]),
        "both without": (flat, flat[:30] + 0.1),
        "collapsed codebook": (spread, torch.full((30, 4), 0.2, dtype=torch.float64)),
        "one code": (spread, torch.full((1, 4), 0.2, dtype=torch.float64)),
        "fewer codes than dims": (spread, correlated(3, 4, seed=2)),
        "equal": (spread, spread.clone()),
        "one feature": (spread[:1], correlated(30, 4, seed=2)),
        "constant features": (torch.ones(9, 4, dtype=torch.float64), correlated(30, 4, seed=2)),
    }


def saved_and_read(quantizer) -> dict:
    """Weights and training state of a quantizer, by way of a file."""
    file = io.BytesIO()
    torch.save({"weights": quantizer.state_dict(), "state": quantizer.training_state()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def spread_codes(quantizer):
    """Draw the codes of a quantizer far enough apart that features take many of them."""
    for name, codebook in quantizer.state_dict().items():
        if name.endswith("codebook"):
            codebook.normal_()
