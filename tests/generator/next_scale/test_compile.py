"""A compiled next-scale generator trains as a plain one, and all its blocks share one compilation."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.generator.next_scale.modeling import NextScaleTransformer
from wvq.training.acceleration import enable_checkpointing

SMALL = {"num_codes": 32, "grid": [4, 4], "scales": [1, 2, 4], "code_dim": 6, "hidden_size": 32, "num_layers": 3}
SMALL |= {"num_heads": 2, "dropout": 0.0, "token_dropout": 0.0, "num_classes": 3}


@pytest.fixture(autouse=True)
def _no_compilations():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("conditioning", ["adaptive", "adaptive_shared", "prefix"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_step_is_that_of_a_plain_model(conditioning, recomputed):
    torch.manual_seed(0)
    plain = NextScaleTransformer(NextScaleTransformerConfig(**SMALL, conditioning=conditioning)).train()
    with torch.no_grad():
        for parameter in plain.parameters():  # nothing starts at zero: each part counts
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model = copy.deepcopy(plain)
    if recomputed:
        enable_checkpointing(model)
    model.compile(backend="aot_eager")  # traces, and runs what it traced without a compiler
    assert model.state_dict().keys() == plain.state_dict().keys()
    for _ in range(2):
        codes, labels = torch.randint(32, (4, 21)), torch.tensor([0, 1, -1, 2])
        outputs = [one(codes, labels, label_smoothing=0.1) for one in (plain, model)]
        for output in outputs:
            output.loss.backward()
        torch.testing.assert_close(outputs[1].loss, outputs[0].loss)
        torch.testing.assert_close(outputs[1].logits, outputs[0].logits)
    assert counters["stats"]["unique_graphs"] == 2  # a block, and the head with the loss
    for (name, parameter), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)
