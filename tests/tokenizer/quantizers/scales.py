"""A small multi-scale quantizer of any method, and features for it."""

import torch

from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.registry import build_quantizer

SIDE, DIM = 5, 4
SCALES = [1, 2, 3, 5]
TOKENS = 1 + 4 + 9 + 25
SHAPES = {"fsq": {"num_codes": 48, "levels": [3, 4, 2, 2]}}


def make(name="vanilla", spread=True, **fields):
    shape = {"num_codes": 16, "code_dim": DIM, "scales": SCALES, "window_size": 500, "num_samples": 12}
    shape |= {"image_size": 4 * SIDE, "channel_multipliers": [1, 1, 1], "affine_interval": 2, **SHAPES.get(name, {})}
    torch.manual_seed(1)
    quantizer = build_quantizer(WassersteinVQConfig(quantizer=name, **{**shape, **fields}))
    quantizer.reset_codebook()
    if spread and "book.codebook" in quantizer.state_dict():
        quantizer.book.codebook.data.normal_()
    return quantizer


def draw(count=3, dim=DIM, seed=0, side=SIDE):
    return torch.randn(count, side, side, dim, generator=torch.Generator().manual_seed(seed))


def seeded(call, *args, seed=0, **kwargs):
    torch.manual_seed(seed)  # some alignments draw directions or samples
    return call(*args, **kwargs)
