"""A training step of the tokenizer never makes the processor wait for the device."""

import pytest
import torch
from torch import nn

from tests.waiting import allow_meta, no_waiting
from wvq.tokenizer.adversarial import Adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import FeatureDistance, ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers.registry import QUANTIZERS
from wvq.tokenizer.recipes import DiscriminatorConfig, LossConfig, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask

FORMS = {"one": {}, "product": {"num_groups": 2, "code_dim": 8}, "multi-scale": {"scales": [1, 4]}}
SIZES = {"image_size": 16, "patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1}
SIZES |= {"dropout": 0.1}


def build(name="sliced", **fields):
    shape = {"num_codes": 48, "levels": [3, 4, 2, 2]} if name == "fsq" else {"num_codes": 16}
    fields = {"code_dim": 4, "num_samples": 12, "affine_interval": 1, **shape, **fields}
    with torch.device("meta"):
        return WassersteinVQModel(WassersteinVQConfig(quantizer=name, **SIZES, **fields))


def step(task, model, adversary=None, parts=2):
    """What the loop does with the parts of a batch, up to the optimisers."""
    task.begin_step(model, parts)
    for _ in range(parts):
        batch = {"pixel_values": torch.rand(2, 3, 16, 16, device="meta")}
        losses = task.loss(model, batch, 640, 0.5)
        losses.loss.backward()
        if losses.adversary_loss is not None:
            losses.adversary_loss(adversary)[0].backward()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_no_quantizer_waits(monkeypatch, name, form):
    allow_meta(monkeypatch)
    quantizer = build(name, **FORMS[form]).quantizer

    def train(parts):
        quantizer.begin_step(parts)
        for _ in range(parts):
            output = quantizer(torch.rand(2, 4, 4, quantizer.dim, device="meta", requires_grad=True), True)
            (output.loss + output.quantized.sum()).backward()

    train(1)  # makes tables that stay
    with no_waiting():
        train(2)


@pytest.mark.parametrize("estimator", ["ste", "rotation"])
def test_no_step_waits(monkeypatch, estimator):
    allow_meta(monkeypatch)
    model = build("wasserstein", gradient_estimator=estimator)
    loss = ReconstructionLoss(LossConfig(l1_weight=1.0))
    task = TokenizerTask(loss, None, TokenizerTrainConfig(images=6400, final_alignment=0.5))
    step(task, model, parts=1)
    with no_waiting():
        step(task, model)


@pytest.mark.parametrize("loss", ["hinge", "vanilla", "non_saturating"])
def test_no_adversary_waits(monkeypatch, loss):
    allow_meta(monkeypatch)
    model = build()
    regularisers = {"lecam_weight": 0.1, "r1_weight": 0.1, "r1_interval": 1, "consistency_weight": 0.1}
    settings = DiscriminatorConfig("patchgan", base_channels=8, num_layers=1, loss=loss, augment=True, **regularisers)
    with torch.device("meta"):
        adversary = Adversary(settings)
        network = nn.Conv2d(3, 4, 3)
    reconstruction = ReconstructionLoss(LossConfig())
    reconstruction.perceptual = FeatureDistance(network, lambda network, pictures: [network(pictures)])
    task = TokenizerTask(reconstruction, None, TokenizerTrainConfig(images=6400), adversary)
    step(task, model, adversary, parts=1)
    with no_waiting():
        step(task, model, adversary)


def test_waiting_is_seen(monkeypatch):
    allow_meta(monkeypatch)
    values = torch.rand(3, 3, device="meta")
    waits = [
        lambda: values.sum().item(),
        lambda: bool(values.isfinite().all()),
        lambda: values.nonzero(),
        lambda: values[values > 0],
        lambda: torch.linalg.eigvalsh(values),
        lambda: torch.zeros_like(values).requires_grad_().trace().backward(),
        lambda: torch.tensor([1, 2], device="meta"),
        lambda: torch.rand(2).to("meta"),
    ]
    for wait in waits:
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), no_waiting():
            wait()
    with no_waiting():
        torch.rand(2).to("meta", non_blocking=True)
