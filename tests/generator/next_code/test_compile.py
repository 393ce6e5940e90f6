"""A compiled generator trains as a plain one, and all its blocks share one compilation."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from tests.tiny import make_generator
from wvq.training.acceleration import enable_checkpointing


@pytest.fixture(autouse=True)
def _no_compilations():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_step_is_that_of_a_plain_model(recomputed):
    plain = make_generator(num_layers=3, num_classes=3, dropout=0.0, token_dropout=0.0).train()
    model = copy.deepcopy(plain)
    if recomputed:
        enable_checkpointing(model)
    model.compile(backend="aot_eager")  # traces, and runs what it traced without a compiler
    assert model.state_dict().keys() == plain.state_dict().keys()
    for _ in range(2):
        codes, labels = torch.randint(32, (4, 16)), torch.tensor([0, 1, -1, 2])
        outputs = [one(codes, labels, label_smoothing=0.1) for one in (plain, model)]
        for output in outputs:
            output.loss.backward()
        torch.testing.assert_close(outputs[1].loss, outputs[0].loss)
        torch.testing.assert_close(outputs[1].logits, outputs[0].logits)
    assert counters["stats"]["unique_graphs"] == 2  # a block, and the head with the loss
    for (name, parameter), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


def test_blocks_with_rates_of_their_own_are_compiled_one_by_one():
    with torch._dynamo.config.patch(recompile_limit=2):
        model = make_generator(num_layers=4, drop_path=0.3).train()
        model.compile(backend="aot_eager")
        model(torch.randint(32, (2, 16))).loss.backward()
    assert counters["stats"]["unique_graphs"] == 5
