"""The linear layer: the same product with packed weights, and the usual path wherever they do not fit."""

import pytest
import torch
import torch.nn.functional as F

from wvq.generator.base import linear
from wvq.generator.base.linear import Projection, can_pack, packed_weights

needs_packing = pytest.mark.skipif(not can_pack(torch.zeros(1)), reason="needs oneDNN on an x86 processor with AVX2")


@needs_packing
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 5), (8, 40), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_does_not_depend_on_the_order_of_the_weights(shape, dtype):
    torch.manual_seed(0)
    layer, x = Projection(24, 40).to(dtype), torch.randn(*shape, 24, dtype=dtype)
    if not can_pack(layer.weight):
        pytest.skip("needs a processor with bfloat16 products")
    with packed_weights(layer), torch.inference_mode():
        assert layer.packed is not None
        found = layer(x)
    expected = F.linear(x.double(), layer.weight.double())
    assert found.is_contiguous()
    assert found.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(found.double(), expected, **tolerance)


@needs_packing
def test_packed_weights_last_as_long_as_their_context_and_are_not_saved():
    model = torch.nn.Sequential(Projection(6, 8), torch.nn.Linear(8, 4), Projection(4, 2))
    with packed_weights(model):
        outer = model[0].packed
        with packed_weights(model):
            assert model[0].packed is outer
        assert model[0].packed is outer
        assert list(model.state_dict()) == ["0.weight", "1.weight", "1.bias", "2.weight"]
    assert model[0].packed is model[2].packed is None
    with pytest.raises(KeyError), packed_weights(model):
        {}["an error inside"]
    assert model[0].packed is None


@needs_packing
def test_weights_that_change_are_packed_anew():
    layer, x = Projection(6, 8), torch.randn(2, 6)
    for _ in range(2):
        with torch.no_grad():
            layer.weight.add_(1)
            with packed_weights(layer):
                torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


def test_other_types_and_short_memory_take_the_usual_path(monkeypatch):
    half = Projection(24, 40).half()
    with packed_weights(half):
        assert half.packed is None
        assert half(torch.randn(4, 24).half()).dtype == torch.float16
    layer = Projection(24, 40)
    with packed_weights(layer), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(4, 24).bfloat16()).dtype == torch.bfloat16
    monkeypatch.setattr(linear, "available_memory", lambda device: 2 * layer.weight.nbytes - 1)
    with packed_weights(layer):
        assert layer.packed is None
    if can_pack(layer.weight):
        with packed_weights(layer, always=True):  # what is drawn may not depend on the memory that is free
            assert layer.packed is not None


def test_no_bias_and_the_names_of_a_plain_layer():
    assert list(Projection(3, 5).state_dict()) == ["weight"]
