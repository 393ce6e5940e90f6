"""A GPU computes what the CPU computes: losses, alignments, both models, sampling; runs and weights move between them.

On a machine without a GPU the same bodies run with the CPU on both sides, so that they cannot rot.
"""

import copy
import os
import signal

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from tests.tiny import make_generator
from wvq.devices import named_device
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.sampling import sample_codes
from wvq.interruption import RunInterrupted
from wvq.models.pretrained import weights_hash
from wvq.tokenizer.adversarial import ADVERSARIAL_LOSSES, gradient_penalty
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.discriminators import build_discriminator
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers import alignment
from wvq.tokenizer.recipes import DiscriminatorConfig, LossConfig
from wvq.tokenizer.train import train_tokenizer
from wvq.training.progress import Progress

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = [pytest.mark.parametrize("device", DEVICES)]
PICTURES, SIDE = 4, 32


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch):
    """PyTorch's default takes TF32, with 10 bits of mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def pictures(seed=0):
    return torch.rand(PICTURES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def points(count, dim, seed):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def assert_alike(compute, device, *tensors, module=None, rtol=1e-4):
    """Values of ``compute`` and their gradients, those of the tensors and of the module's weights, on both devices.

    A gradient is compared by the size of the whole of it: of a sum that cancels only rounding is left. Where that is
    all of it, as for a bias in front of a norm, by the rounding of all gradients together.
    """
    results = []
    for place in ("cpu", device):
        moved = copy.deepcopy(module).to(place) if module is not None else None
        inputs = [tensor.to(place).requires_grad_(tensor.is_floating_point()) for tensor in map(torch.clone, tensors)]
        values = compute(*([moved] if moved is not None else []), *inputs)
        values[0].backward()
        leaves = [tensor for tensor in inputs if tensor.is_floating_point()]
        leaves += [] if moved is None else [p for p in moved.parameters() if p.requires_grad]
        results.append(
            ([value.detach().cpu() for value in values], [p.grad.cpu() for p in leaves if p.grad is not None])
        )
    (expected, expected_gradients), (found, gradients) = results
    for value, before in zip(found, expected, strict=True):
        torch.testing.assert_close(value, before, rtol=rtol, atol=rtol * before.abs().max().item())
    assert gradients
    whole = torch.stack([before.norm() for before in expected_gradients]).norm()
    rounding = torch.finfo(torch.float32).eps * whole + 1e-8
    for value, before in zip(gradients, expected_gradients, strict=True):
        assert (value - before).norm() <= 10 * rtol * before.norm() + rounding


# ---- losses


@pytest.mark.parametrize("perceptual", [0.0, 1.0])
def test_reconstruction_losses(device, perceptual):
    settings = {"perceptual_weight": perceptual, "perceptual_network": "efficientnet_lite0"} if perceptual else {}
    loss = ReconstructionLoss(LossConfig(l1_weight=1.0, l2_weight=0.5, **settings))
    place, original = {}, pictures(1)

    def compute(module, reconstruction):
        total, terms = module(reconstruction, original.to(reconstruction.device))
        place[reconstruction.device.type] = set(terms)
        return [total, *terms.values()]

    assert_alike(compute, device, pictures(), module=loss)
    assert place[device] == {"l1", "l2", *(["perceptual"] if perceptual else [])}


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_adversarial_losses(device, name):
    config = DiscriminatorConfig(network="patchgan", base_channels=8, num_layers=2, loss=name)
    torch.manual_seed(0)
    network = build_discriminator(config)
    of_discriminator, of_generator = ADVERSARIAL_LOSSES[name]

    def compute(module, real, fake):
        judged = module(real)
        return [of_discriminator(judged, module(fake)) + of_generator(module(fake)) + gradient_penalty(judged, [real])]

    assert_alike(compute, device, pictures(), pictures(1), module=network)


# ---- alignments


@pytest.mark.parametrize("name", ["gaussian", "sliced", "robust", "mmd"])
@pytest.mark.parametrize("dim", [8, 32])
def test_alignments(device, name, dim):
    features, codebook, directions = points(2_000, dim, 0) + 0.5, 0.3 * points(300, dim, 1), points(16, dim, 2)
    directions /= directions.norm(dim=1, keepdim=True)

    def compute(codes):
        there = features.to(codes.device)
        if name == "gaussian":
            return [alignment.gaussian_wasserstein(*moments(there), codes)]
        if name == "mmd":
            return [alignment.mmd(there[:500], codes)]
        settings = {"robust": 0.5} if name == "robust" else {}
        return [alignment.sliced_wasserstein(there, codes, directions.to(codes.device), **settings)]

    assert_alike(compute, device, codebook)


def moments(features):
    window = alignment.MomentWindow()
    window.update(features)
    return window.moments()


def test_the_affine_map(device):
    features, codebook = points(2_000, 8, 0) + 0.5, 0.3 * points(300, 8, 1)
    expected, found = (
        alignment.affine_map(*moments(features.to(place)), codebook.to(place)).cpu() for place in ("cpu", device)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- models


def tokenizer(**changes):
    sizes = {"patch_size": 2, "base_channels": 16, "channel_multipliers": [1, 2], "num_res_blocks": 1}
    torch.manual_seed(0)
    config = WassersteinVQConfig(image_size=SIDE, **sizes, num_codes=64, code_dim=8, **changes)
    model = WassersteinVQModel(config)
    model.quantizer.reset_codebook()
    return model


def test_the_tokenizer(device):
    """A step with the paper's alignment; another draws its projections on the device."""

    def compute(model, pixels):
        output = model.train()(pixels, update_statistics=True)
        loss = (output.reconstruction - pixels).square().mean() + output.quantizer_loss
        return [loss, output.reconstruction]

    assert_alike(compute, device, pictures(), module=tokenizer(quantizer="wasserstein"))


def test_codes_and_pictures_of_a_tokenizer(device):
    model, pixels = tokenizer().eval(), pictures()
    with torch.no_grad():
        expected, decoded = model.encode(pixels).codes, model.decode(model.encode(pixels).quantized)
        model.to(device)
        codes = model.encode(pixels.to(device)).codes
        found = model.decode_codes(expected.to(device)).cpu()
    assert (codes.cpu() == expected).float().mean() > 0.98  # a feature may lie half way between two codes
    torch.testing.assert_close(found, decoded, rtol=1e-3, atol=1e-4)


GENERATORS = {
    "class": {"num_classes": 3},
    "text": {"text_dim": 16, "text_length": 5},
    "grouped": {"num_classes": 3, "num_heads": 4, "num_kv_heads": 2, "qk_norm": True},
    "vectors": {"num_classes": 3, "code_dim": 4, "head": "tied", "target_positions": True, "condition_bias": True},
}


def generator(kind):
    dropouts = dict.fromkeys(("dropout", "token_dropout"), 0.0)
    return make_generator(**GENERATORS[kind], **dropouts)


def condition(kind, device, count=PICTURES):
    if kind != "text":
        return Condition((torch.arange(count) % 3).to(device))
    mask = torch.arange(5)[None] >= torch.arange(count)[:, None] % 5
    return Condition(None, points(count * 5, 16, 3).view(count, 5, 16).to(device), mask.to(device))


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_generator(device, kind):
    codes = torch.randint(0, 32, (PICTURES, 16), generator=torch.Generator().manual_seed(0))

    def compute(model, codes):
        given = condition(kind, codes.device)
        output = model.train()(codes, given.class_labels, given.text_features, given.text_mask)
        return [output.loss, output.logits]

    assert_alike(compute, device, codes, module=generator(kind))


# ---- sampling


SETTINGS = {
    "greedy": {"temperature": 0.0},
    "drawn": {},
    "filtered": {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "temperature": 0.8},
    "interval": {"guidance_schedule": "cosine", "guidance_interval": (0.2, 0.7)},
    "window": {"window": 4},
    "passes": {"passes": 4},
}
DRAWN = [
    (kind, name)
    for kind, fields in GENERATORS.items()
    for name in SETTINGS
    if name != "passes" or fields.get("target_positions")
]


@pytest.mark.parametrize(("kind", "name"), DRAWN)
def test_sampling(device, kind, name):
    """The same codes, but where rounding decides a draw, from which on a picture is another one."""
    model, settings, seeds = generator(kind), SamplingSettings(guidance_scale=2.0, **SETTINGS[name]), list(range(16))
    drawn = []
    for place in ("cpu", device):
        drawn.append(sample_codes(model.to(place), condition(kind, place, 16), seeds, settings).cpu().flatten(1))
    same = (drawn[0] == drawn[1]).all(1)
    assert same.float().mean() >= 0.9


# ---- what moves between devices


@pytest.mark.parametrize("build", [tokenizer, lambda: generator("class")], ids=["tokenizer", "generator"])
def test_saved_weights_are_those_of_the_other_device(device, build, tmp_path):
    model = build()
    expected = weights_hash(model)
    kind = WassersteinVQModel if isinstance(model, WassersteinVQModel) else ImageCodeTransformer
    model.save_pretrained(tmp_path / "cpu")
    there = kind.from_pretrained(tmp_path / "cpu").to(device)
    there.save_pretrained(tmp_path / "device")
    assert weights_hash(kind.from_pretrained(tmp_path / "device")) == weights_hash(there) == expected


def choose(device, monkeypatch):
    """Have the next run work on a device."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(device == "cpu"))


def cut_after(images, monkeypatch):
    """A SIGTERM once a run has seen so many pictures."""
    end_step = Progress.end_step

    def end(self):
        end_step(self)
        if self.images_seen == images:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "end_step", end)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("back", [False, True])
def test_a_run_goes_on_on_the_other_device(device, back, tiny_tokenizer_recipe, tmp_path, monkeypatch):
    """Begun on the CPU, or with ``back`` on the device; the rest of the run as the whole of it on the CPU."""
    changes = {"images": 96, "batch_size": 16, "log_every": 16}
    shape = {"quantizer": "wasserstein"}
    choose("cpu", monkeypatch)
    expected = train_tokenizer(tiny_tokenizer_recipe(tmp_path / "whole", changes, shape))
    recipe = tiny_tokenizer_recipe(tmp_path / "parts", changes, shape)
    first, second = (device, "cpu") if back else ("cpu", device)
    with monkeypatch.context() as patch:
        choose(first, patch)
        cut_after(48, patch)
        with pytest.raises(RunInterrupted):
            train_tokenizer(recipe)
    choose(second, monkeypatch)
    found = train_tokenizer(recipe, resume=True)
    assert found["images"] == 96
    tolerance = 0.0 if device == "cpu" else 0.02
    for name in ("psnr_rgb", "quantization_error"):
        assert found[name] == pytest.approx(expected[name], rel=tolerance), name


def test_a_device_that_is_not_there_is_named(device):
    assert named_device(device).type == device
    with pytest.raises(ConfigError, match='device "cuda:99" cannot be used here'):
        named_device("cuda:99")
