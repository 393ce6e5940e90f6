"""Published tokenizers against plain formulas in float64: far beyond the rounding in which their outputs are kept."""

import pytest
import torch

from tests.peers import peer
from tests.tokenizer.published.plain import PlainNetwork
from tests.tokenizer.published.test_forms import make, options_of, pictures
from tests.tokenizer.published.test_peers import NAMES, OPTIONS
from wvq.models.scale_maps import shared_convs
from wvq.tokenizer.published.registry import read_tokenizer, write_tokenizer


def compare(model, weights, pixel_values, codes):
    """Raise AssertionError unless features, codes' vectors and pictures are those of the formulas to 1e-9."""
    plain, wide, scales = PlainNetwork(weights), model.double(), model.config.scales
    encoded = wide.encode(pixel_values)
    if codes is not None:
        assert torch.equal(encoded.codes, codes)
    taken = shared_convs(len(scales), 4) if scales else ()
    quantized = plain.lookup(encoded.codes, scales, taken)
    expected = {
        "features": plain.encode(pixel_values),
        "quantized": quantized,
        "pictures": plain.decode(quantized).clamp(-1, 1),
    }
    given = {
        "features": encoded.features,
        "quantized": encoded.quantized,
        "pictures": wide.decode_codes(encoded.codes),
    }
    for name, value in expected.items():
        torch.testing.assert_close(given[name], value, rtol=0, atol=1e-9 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("family", sorted(NAMES))
@torch.no_grad()
def test_small_models_of_the_projects(family):
    given = peer(NAMES[family])
    model = read_tokenizer(family, dict(given.weights), "weights", OPTIONS[family])
    compare(model, given.weights, given.io["pixel_values"].double(), given.io["codes"])


@pytest.mark.parametrize("family", sorted(NAMES))
@torch.no_grad()
def test_models_of_other_sizes_of_our_own(family):
    written = write_tokenizer(family, make(family))
    model = read_tokenizer(family, dict(written), "weights", options_of(make(family)))
    compare(model, written, pictures().double(), None)
