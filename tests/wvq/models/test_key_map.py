"""Maps between names and forms of weights, in both directions."""

from __future__ import annotations

import pytest
import torch

from wvq.errors import CheckpointError
from wvq.models.key_map import permuted, read_weights, reshaped, same, stacked, write_weights

ROWS = torch.tensor([0, 2, 4, 1, 3, 5])


def their_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3,), "q": (2, 4), "k": (2, 4), "v": (2, 4), "conv": (5, 2, 1, 1), "turned": (6, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def entries():
    return [
        same("own.a", "a"),
        stacked("qkv", "q", "k", "v"),
        reshaped("linear", "conv", (5, 2), (5, 2, 1, 1)),
        permuted("halves", "turned", ROWS),
    ]


SHAPES = {
    "own.a": torch.Size([3]),
    "qkv": torch.Size([6, 4]),
    "linear": torch.Size([5, 2]),
    "halves": torch.Size([6, 3]),
}


def test_weights_are_read_and_written_back():
    state = their_state()
    ours = read_weights(dict(state), entries(), [], SHAPES, "file")
    assert torch.equal(ours["qkv"], torch.cat([state["q"], state["k"], state["v"]]))
    assert torch.equal(ours["halves"][3], state["turned"][1])
    back = write_weights(ours, entries())
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(back[name], value), name


def test_memory_of_their_weights_is_given_back():
    state = their_state()
    ours = read_weights(state, entries(), [], SHAPES, "file")
    assert not state
    assert all(value.is_contiguous() for value in ours.values())


def test_dropped_weights_are_named_on_purpose():
    read_weights(their_state() | {"loss.x": torch.zeros(1)}, entries(), [r"loss\..*"], SHAPES, "file")
    extra = {"loss.x": torch.zeros(1), "loss.y": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"file holds loss\.x and 1 others, which the model has no place for"):
        read_weights(their_state() | extra, entries(), ["loss"], SHAPES, "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("k"), "file lacks the weight k"),
        (lambda state: state.update(a=torch.zeros(4)), r"a makes \(4,\) of own\.a, where the model has \(3,\)"),
        (lambda state: state["conv"].fill_(float("nan")), "conv holds NaN"),
        (lambda state: state.update(turned=torch.zeros(8, 3)), r"turned makes \(8, 3\) of halves"),
        (lambda state: state.update(turned=torch.zeros(4, 3)), r"turned makes \(4, 3\) of halves"),
        (lambda state: state.update(conv=torch.zeros(3, 3)), r"conv of \(3, 3\) cannot be linear"),
        (lambda state: state.update(k=torch.zeros(2, 5)), r"q of \(2, 4\) cannot be qkv"),
        (lambda state: state.update(a=torch.zeros(3, dtype=torch.complex64)), "a is of complex64"),
        (lambda state: state.update(a=torch.zeros(3, dtype=torch.float8_e4m3fn)), "a is of float8_e4m3fn"),
        (lambda state: state.update(a=torch.zeros(3, dtype=torch.int8)), "a is of int8"),
    ],
)
def test_other_files_are_refused(change, message):
    state = their_state()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        read_weights(state, entries(), [], SHAPES, "file")


def test_shapes_alone_make_shapes():
    state = {name: weight.to("meta") for name, weight in their_state().items()}
    weights = read_weights(state, entries(), [], SHAPES, "file")
    assert {name: weight.shape for name, weight in weights.items()} == SHAPES
    assert all(weight.is_meta for weight in weights.values())


def test_every_weight_of_the_model_is_given():
    with pytest.raises(CheckpointError, match="holds nothing for more of the model"):
        read_weights(their_state(), entries(), [], SHAPES | {"more": torch.Size([1])}, "file")
