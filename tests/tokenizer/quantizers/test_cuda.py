"""Quantizers on a GPU do what they do on the CPU; the tests run with the CPU in place of the GPU too."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.tokenizer.quantizers.searching import draw, draw_near_ties, losses_of
from wvq.precision import exact_float32
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers import aligned
from wvq.tokenizer.quantizers.nearest import nearest_codes
from wvq.tokenizer.quantizers.registry import QUANTIZERS, build_quantizer

on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
FORMS = {"one": {}, "product": {"num_groups": 2, "code_dim": 8}, "multi-scale": {"scales": [1, 2, 4]}}
COMPARISONS = {"length one": {"l2_normalize": True}, "product of vectors": {"similarity": "dot"}}
CASES = [(name, form) for name in sorted(QUANTIZERS) for form in FORMS]
CASES += [(name, form) for name in sorted(QUANTIZERS) if QUANTIZERS[name].by_gradient for form in COMPARISONS]
PARTS = 2


@pytest.fixture(autouse=True)
def _drawn_on_the_cpu(monkeypatch):
    """Directions and samples, which each device draws for itself, are those of the CPU."""

    def directions(count, dim, device, joined=True, draw=aligned.random_directions):
        return draw(count, dim, torch.device("cpu"), joined).to(device)

    def sample(points, count, joined=True):
        return points[torch.randperm(len(points))[:count].to(points.device)]

    monkeypatch.setattr(aligned, "random_directions", directions)
    monkeypatch.setattr(aligned, "random_sample", sample)


def build(name, form, estimator="ste"):
    shape = {"num_codes": 48, "levels": [3, 4, 2, 2]} if name == "fsq" else {"num_codes": 16}
    fields = {"code_dim": 4, "num_samples": 12, "affine_interval": 1, "window_size": 200, **shape}
    fields |= (FORMS | COMPARISONS)[form]
    network = {"image_size": 16, "channel_multipliers": [1, 1, 1], "gradient_estimator": estimator}
    torch.manual_seed(1)
    quantizer = build_quantizer(WassersteinVQConfig(quantizer=name, **network, **fields))
    quantizer.reset_codebook()
    for key, codebook in quantizer.state_dict().items():
        if key.endswith("codebook"):
            codebook.normal_()
    return quantizer


def train(quantizer, device):
    """A step in parts; what each part gave, and what the step has left, on the CPU."""
    torch.manual_seed(2)
    quantizer.begin_step(PARTS)
    seen = {}
    for part in range(PARTS):
        draws = torch.randn(4, 4, 4, quantizer.dim, generator=torch.Generator().manual_seed(part))
        features = draws.to(device).requires_grad_()
        output = quantizer(features, update_statistics=True)
        with exact_float32(device):  # the forward pass is exact by itself; gradients of convolutions may take TF32
            (output.loss + output.quantized.square().mean()).backward()
        seen[part] = {**vars(output), "gradient": features.grad}
    seen["parameters"] = dict(quantizer.named_parameters())
    seen["gradients"] = {name: parameter.grad for name, parameter in quantizer.named_parameters()}
    seen["state"] = quantizer.training_state()
    seen["codes"] = quantizer.encode(features.detach())
    seen["vectors"] = quantizer.lookup(seen["codes"])
    return seen


@on_each_device
@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_step_is_that_of_the_cpu(device, name, form):
    here = build(name, form)
    there = copy.deepcopy(here).to(device)
    expected, given = train(here, "cpu"), train(there, device)
    values = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
    references = [leaf for leaf in tree_leaves(expected) if isinstance(leaf, torch.Tensor)]
    assert len(values) == len(references) > 8
    for value, reference in zip(values, references, strict=True):
        torch.testing.assert_close(value.cpu(), reference, rtol=1e-4, atol=1e-5)  # of integers, equal


@on_each_device
@pytest.mark.parametrize("name", ["vanilla", "lfq"])
def test_the_rotation_is_that_of_the_cpu(device, name):
    here = build(name, "one", "rotation")
    expected, given = train(here, "cpu"), train(build(name, "one", "rotation").to(device), device)
    torch.testing.assert_close(given[0]["gradient"].cpu(), expected[0]["gradient"], rtol=1e-4, atol=1e-5)


@on_each_device
@pytest.mark.parametrize("dim", [3, 8, 16, 24, 256])
@pytest.mark.parametrize(("count", "num_codes"), [(1, 1), (257, 30_000), (3_000, 1_000)])
def test_the_codes_are_those_of_the_cpu(device, count, num_codes, dim):
    features, codebook = draw(count, num_codes, dim)
    expected, given = nearest_codes(features, codebook), nearest_codes(features.to(device), codebook.to(device)).cpu()
    assert (given == expected).float().mean() >= 0.999
    assert losses_of(features, codebook, given, expected).max() < 1e-6
    features, codebook = draw_near_ties(min(count, 300), num_codes, dim)
    given = nearest_codes(features.to(device), codebook.to(device)).cpu()
    assert losses_of(features, codebook, given, nearest_codes(features, codebook)).max() < 1e-6


@on_each_device
@pytest.mark.parametrize("dim", [8, 256])
def test_other_types_are_compared_in_float32(device, dim):
    features, codebook = (tensor.to(device) for tensor in draw(200, 500, dim))
    for dtype in (torch.float64, torch.bfloat16):
        given = features.to(dtype), codebook.to(dtype)
        assert torch.equal(nearest_codes(*given), nearest_codes(*(tensor.float() for tensor in given)))
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(nearest_codes(features, codebook), nearest_codes(features.clone(), codebook.clone()))


@pytest.fixture
def _waits_are_errors():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.usefixtures("_waits_are_errors")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_no_step_waits_for_the_gpu(monkeypatch, name, form):
    """As on the meta device (test_no_waiting.py), with the kernels and libraries of a GPU."""
    monkeypatch.undo()  # directions and samples are drawn on the GPU
    quantizer = build(name, form).to("cuda")
    features = [torch.randn(4, 4, 4, quantizer.dim, device="cuda", requires_grad=True) for _ in range(PARTS)]

    def step():
        quantizer.begin_step(PARTS)
        for part in features:
            output = quantizer(part, update_statistics=True)
            (output.loss + output.quantized.square().mean()).backward()

    step()  # compiles kernels, and makes tables that stay
    torch.cuda.set_sync_debug_mode("error")
    step()


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [8, 256])
def test_a_search_takes_little_memory_of_the_gpu(dim):
    features, codebook = (torch.randn(count, dim, device="cuda") for count in (65_536, 262_144))
    nearest_codes(features[:100], codebook)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nearest_codes(features, codebook)
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20
