"""A training step in several parts: statistics, updates without gradient and alignment are those of the whole batch."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.tokenizer.quantizers.features import saved_and_read
from wvq.tokenizer.adversarial import Adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.registry import QUANTIZERS, build_quantizer
from wvq.tokenizer.recipes import DiscriminatorConfig

# Tokens of several scales come in another order in parts, and a random sample of them would be another one.
FORMS = {
    "one": {},
    "product": {"num_groups": 2, "code_dim": 8},
    "multi-scale": {"scales": [1, 2, 4], "num_samples": 999},
}
STEPS, PARTS = 3, 4


@pytest.fixture(params=FORMS)
def make(request):
    """A function that makes the same quantizer of a name each time."""

    def build(name, **more):
        shape = {"num_codes": 48, "levels": [3, 4, 2, 2]} if name == "fsq" else {"num_codes": 16}
        fields = {"window_size": 200, "affine_interval": 2, "num_samples": 12, "code_dim": 4, **shape, **more}
        if name == "lfq":
            fields["entropy_weight"] = 0.0  # of a mean over the pictures, which each part has for itself
        network = {"image_size": 16, "channel_multipliers": [1, 1, 1]}  # a grid of 4 x 4
        torch.manual_seed(1)
        quantizer = build_quantizer(
            WassersteinVQConfig(quantizer=name, **{**network, **fields, **FORMS[request.param]})
        )
        quantizer.reset_codebook()
        for key, codebook in quantizer.state_dict().items():
            if key.endswith("codebook"):
                codebook.normal_()
        return quantizer

    return build


def draw(step, dim):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, 4, dim, generator=generator) + torch.arange(8).view(8, 1, 1, 1) / 4


def train(quantizer, parts, steps):
    """Train by plain descent; return each step's loss and codes, as the loop means and joins them."""
    seen = []
    for step in steps:
        torch.manual_seed(step)  # some alignments draw directions or samples
        quantizer.begin_step(parts)
        outputs = [quantizer(part, update_statistics=True) for part in draw(step, quantizer.dim).chunk(parts)]
        loss = sum(output.loss for output in outputs) / parts
        if loss.requires_grad:
            loss.backward()
        with torch.no_grad():
            for parameter in quantizer.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        terms = {name: sum(out.losses.get(name, 0) for out in outputs) / parts for name in outputs[-1].losses}
        seen.append((loss.detach(), torch.cat([output.codes for output in outputs]), terms))
    return seen


def equal(found, expected):
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


def close(found, expected):
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_a_step_in_parts_is_that_of_the_whole_batch(make, name):
    whole, cut = make(name), make(name)
    expected, found = train(whole, 1, range(STEPS)), train(cut, PARTS, range(STEPS))
    for (loss, codes, terms), (loss_in_parts, codes_in_parts, terms_in_parts) in zip(expected, found, strict=True):
        torch.testing.assert_close(loss_in_parts, loss, rtol=1e-4, atol=1e-5)
        close(terms_in_parts, terms)
        assert (codes_in_parts == codes).float().mean() > 0.99  # a code on a border may fall to either side
    close(cut.state_dict(), whole.state_dict())
    close(cut.training_state(), whole.training_state())


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_steps_in_parts_go_on_from_a_saved_state(make, name):
    quantizer, resumed = make(name), make(name)
    train(quantizer, PARTS, range(STEPS))
    saved = saved_and_read(quantizer)
    expected = train(quantizer, PARTS, range(STEPS, 2 * STEPS))
    resumed.load_state_dict(saved["weights"])
    resumed.load_training_state(copy.deepcopy(saved["state"]), torch.device("cpu"))
    found = train(resumed, PARTS, range(STEPS, 2 * STEPS))
    assert equal(found, expected)


@pytest.mark.parametrize("name", ["ema", "online", "wasserstein", "affine"])
def test_nothing_moves_before_the_last_part_and_nothing_is_left_of_a_step_that_broke_off(make, name):
    quantizer, twin = make(name), make(name)
    before = copy.deepcopy((quantizer.state_dict(), quantizer.training_state()))
    quantizer.begin_step(2)
    assert "alignment" not in quantizer(3 + draw(9, quantizer.dim), update_statistics=True).losses
    for a, b in zip(
        tree_leaves((quantizer.state_dict(), quantizer.training_state())), tree_leaves(before), strict=True
    ):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    train(quantizer, 1, range(STEPS))
    train(twin, 1, range(STEPS))
    assert all(
        torch.equal(a, b) for a, b in zip(quantizer.state_dict().values(), twin.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["ema", "online", "wasserstein", "affine"])
def test_a_step_with_nan_in_one_part_changes_nothing(make, name):
    quantizer, twin = make(name, window_size=10_000), make(name, window_size=10_000)
    for one in (quantizer, twin):
        train(one, PARTS, range(STEPS))
    bad = draw(7, quantizer.dim)
    bad[2, 1, 1] = torch.nan
    quantizer.begin_step(PARTS)
    with torch.no_grad():
        for part in bad.chunk(PARTS):
            quantizer(part, update_statistics=True)
    if name != "affine":  # counts its steps
        train(quantizer, PARTS, range(STEPS, STEPS + 1))
        train(twin, PARTS, range(STEPS, STEPS + 1))
    assert all(
        torch.equal(a, b) for a, b in zip(quantizer.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_lecam_averages_move_once_a_step():
    torch.manual_seed(0)
    config = DiscriminatorConfig(network="patchgan", base_channels=4, num_layers=1, lecam_weight=0.1)
    whole = Adversary(config).eval()
    cut = copy.deepcopy(whole)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        real, fake = (torch.rand(8, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
        loss, terms = whole(real, fake)
        cut.begin_step(PARTS)
        parts = [cut(*pair) for pair in zip(real.chunk(PARTS), fake.chunk(PARTS), strict=True)]
        torch.testing.assert_close(sum(part[0] for part in parts) / PARTS, loss)
        torch.testing.assert_close(sum(part[1]["lecam"] for part in parts) / PARTS, terms["lecam"])
        torch.testing.assert_close(cut.real_average, whole.real_average)
        torch.testing.assert_close(cut.fake_average, whole.fake_average)
    assert whole.real_average != 0
