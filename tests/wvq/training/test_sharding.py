"""The whole model of a sharded run: put together where it is asked for, kept by no process."""

import pytest
import torch
from torch import nn

from wvq.training import sharding
from wvq.training.sharding import ShardedModel, skeleton


class Tied(nn.Module):
    """Two layers that share a weight, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, x):
        return self.last(self.first(x)) * self.scale


def empty(model: ShardedModel) -> bool:
    return all(t.is_meta for t in (*model.structure.parameters(), *model.structure.buffers()))


@pytest.fixture
def trained():
    """A model that trains, whole as in a group of one process, and what holds its average after a step."""
    torch.manual_seed(0)
    model = Tied()
    structure = skeleton(model)
    held = ShardedModel(structure, model, 0.5, torch.device("cpu"))
    with torch.no_grad():
        model.first.weight.add_(1)
        model.scale.add_(1)
    held.update(model)
    return model, held


def test_a_skeleton_has_the_names_and_ties_and_no_numbers():
    model = Tied()
    bare = skeleton(model)
    assert all(t.is_meta for t in bare.state_dict().values())
    assert bare.state_dict().keys() == model.state_dict().keys()
    assert bare.last.weight is bare.first.weight
    assert not any(t.is_meta for t in model.state_dict().values())


def test_the_whole_model_is_a_copy_and_goes_again(trained):
    model, held = trained
    whole = held.model
    assert whole.last.weight is whole.first.weight
    assert not whole.training
    assert not any(p.requires_grad for p in whole.parameters())
    torch.testing.assert_close(whole.first.weight, model.first.weight - 0.1)  # the decay of the first update is 0.1
    assert whole.scale == 3
    expected = whole.first.weight.clone()
    with torch.no_grad():
        model.first.weight.zero_()
        model.scale.zero_()
    assert torch.equal(whole.first.weight, expected)
    assert whole.scale == 3
    assert empty(held)


def test_only_the_main_process_has_what_is_saved(trained, monkeypatch):
    _, held = trained
    assert torch.equal(held.model_of_main_process.first.weight, held.model.first.weight)
    assert held.state_dict()["model"].keys() == Tied().state_dict().keys()
    monkeypatch.setattr(sharding, "is_main_process", lambda: False)
    assert held.model_of_main_process is None
    assert held.state_dict() == {"updates": 1, "model": None}
    assert empty(held)


def test_the_state_is_taken_up_again(trained):
    _, held = trained
    model = Tied()
    other = ShardedModel(skeleton(model), model, 0.5, torch.device("cpu"))
    other.load_state_dict(held.state_dict())
    assert other.updates == 1
    assert torch.equal(other.model.first.weight, held.model.first.weight)
    assert empty(other)


def test_without_an_average_the_weights_themselves_are_put_together():
    model = Tied()
    held = ShardedModel(skeleton(model), model, 0.0, torch.device("cpu"))
    with torch.no_grad():
        model.first.weight.fill_(5.0)
    held.update(model)
    assert (held.model.first.weight == 5).all()
    assert held.state_dict() == {"updates": 0, "model": None}
