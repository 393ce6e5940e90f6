"""Which positions are guided; hidden states of both halves are those of whole passes, of several codebooks."""

import pytest
import torch

from tests.generator.depth.test_depth import codes_of, condition, make
from wvq.generator.base.guided import GuidedBody, guided_positions


@pytest.mark.parametrize(
    ("scales", "start", "expected"),
    [
        ([1.0] * 4, 0, range(0)),
        ([2.0] * 4, 0, range(4)),
        ([1.0, 2.0, 1.0, 0.5, 1.0], 0, range(1, 4)),
        ([1.0, 2.0, 1.0, 0.5, 1.0], 2, range(3, 4)),
        ([2.0, 1.0, 1.0], 1, range(0)),
    ],
)
def test_guidance_lies_between_the_first_and_the_last_scale_that_is_not_one(scales, start, expected):
    assert guided_positions(scales, start) == expected


@torch.inference_mode()
def test_hidden_states_of_several_codebooks_are_those_of_whole_passes():
    model, scales = make("text"), [1.0] * 4 + [2.0] * 6 + [1.0] * 6
    codes, given = codes_of(model).flatten(1, 2), condition(model)
    body = GuidedBody(model, given, 3, scales)
    whole = []
    for one in (given, given.null()):
        prefix = model.condition(one, 3)
        tokens = torch.cat((prefix.tokens, model.embed_codes(codes[:, :-1], prefix.bias)), 1)
        whole.append(model.run(tokens, prefix.valid)[:, model.config.prefix_length - 1 :])
    for start, end in ((0, 2), (2, 4), (4, 7), (6, 10), (10, 16)):
        guided = start >= 4 and end <= 10
        expected = torch.cat(whole) if guided else whole[0]
        torch.testing.assert_close(body.hidden(codes, start, end), expected[:, start:end], atol=2e-5, rtol=1e-4)
