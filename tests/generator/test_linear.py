"""The linear layer: the same product in both orders, and the usual path wherever the other does not fit."""

import pytest
import torch
import torch.nn.functional as F

from wvq.generator.linear import FEW_ROWS, Projection


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 5), (FEW_ROWS, 1), (FEW_ROWS + 1, 1), (8, 40)])
@pytest.mark.parametrize("grad", [False, True])
def test_the_product_does_not_depend_on_the_path(shape, grad):
    layer, x = Projection(24, 40), torch.randn(*shape, 24)
    with torch.set_grad_enabled(grad):
        found = layer(x)
    expected = F.linear(x.double(), layer.weight.double()).float()
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_and_other_types_take_the_usual_path(monkeypatch):
    layer = Projection(24, 40)
    layer(torch.randn(4, 24)).sum().backward()
    assert layer.weight.grad is not None
    monkeypatch.setattr(torch, "mm", lambda *_: pytest.fail("the order for few rows"))
    with torch.no_grad():
        assert layer.to(torch.bfloat16)(torch.randn(4, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(4, 24)).dtype == torch.bfloat16
        assert layer(torch.randn(FEW_ROWS + 1, 24)).shape == (FEW_ROWS + 1, 40)
        with pytest.raises(pytest.fail.Exception):
            layer(torch.randn(4, 24))


def test_no_bias_and_the_names_of_a_plain_layer():
    assert list(Projection(3, 5).state_dict()) == ["weight"]
