"""What tests of real pictures share."""

import pytest
import torch


class Counting(torch.nn.Module):
    """A feature network that counts the pictures it has seen."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, images):
        self.seen += len(images)
        return self.network(images)


@pytest.fixture
def counting(projection):
    return Counting(projection)


@pytest.fixture
def inception_like(projection_with_logits):
    """A fast network that goes by Inception's name."""
    projection_with_logits.name = "inception"
    return projection_with_logits
