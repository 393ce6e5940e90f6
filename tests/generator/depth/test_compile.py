"""A compiled depth generator, and one that computes its blocks again, train as a plain one."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from wvq.generator.depth.configuration import DepthTransformerConfig
from wvq.generator.depth.modeling import DepthTransformer
from wvq.training.acceleration import enable_checkpointing

SIZES = {"num_codes": 32, "grid": [4, 4], "hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_classes": 3}
SIZES |= {"dropout": 0.0, "token_dropout": 0.0, "code_dim": 4, "head": "normal"}


@pytest.fixture(autouse=True)
def _no_compilations():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def same_step(plain: DepthTransformer, model: DepthTransformer) -> None:
    """Both models' losses, logits and gradients of a step are equal."""
    codes, labels = torch.randint(32, (4, 4, 4, 2)), torch.tensor([0, 1, -1, 2])
    outputs = [one(codes, labels, label_smoothing=0.1) for one in (plain, model)]
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss)
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits)
    for (name, parameter), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


def both(**changes) -> tuple[DepthTransformer, DepthTransformer]:
    plain = DepthTransformer(DepthTransformerConfig(**SIZES | changes)).train()
    plain.take_quantizer({"codebook": torch.randn(2, 32, 2)})
    return plain, copy.deepcopy(plain)


@pytest.mark.parametrize(("head", "graphs"), [("transformer", 3), ("parallel", 2)])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_compiled_step_is_that_of_a_plain_model(recomputed, head, graphs):
    plain, model = both(depth_head=head)
    if recomputed:
        enable_checkpointing(model)
    model.compile(backend="aot_eager")  # traces, and runs what it traced without a compiler
    assert model.state_dict().keys() == plain.state_dict().keys()
    for _ in range(2):
        same_step(plain, model)
    # A block of the body, one over depth, and the classifiers with the loss; none of them falls apart.
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_blocks_over_depth_are_computed_again_too():
    plain, model = both()
    enable_checkpointing(model)
    assert all(block.gradient_checkpointing for block in (*model.blocks, *model.depth.blocks))
    same_step(plain, model)
