"""Estimates of memory, within a tenth of the tensors that are alive at once."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.live_bytes import LiveBytes
from wvq.generator.base.body import rotary_table
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.memory import FLOAT, sampling_bytes, training_bytes, whole_pass_bytes
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.sampling import sample_codes
from wvq.training.acceleration import enable_checkpointing
from wvq.training.optimization import build_optimizer

SIZES = {"hidden_size": 64, "num_layers": 3, "num_heads": 2, "grid": [8, 8], "num_codes": 512, "num_classes": 3}
LLAMAGEN = {"prefix_rotary": "erased", "null_text": "features", "text_projection": "mlp", "text_dim": 32}
LLAMAGEN |= {"text_length": 120, "hidden_size": 200, "num_classes": 0}  # heads of 100
MANY_CODES = {"num_codes": 16_384, "hidden_size": 32, "grid": [4, 4]}
BATCH = 8


def build(dtype: torch.dtype = torch.float32, **changes) -> ImageCodeTransformer:
    torch.manual_seed(0)
    return ImageCodeTransformer(ImageCodeTransformerConfig(**SIZES | changes)).to(dtype)


def condition(config: ImageCodeTransformerConfig) -> Condition:
    labels = torch.zeros(BATCH, dtype=torch.int64)
    if not config.text_dim:
        return Condition(labels)
    features = torch.zeros(BATCH, config.text_length, config.text_dim)
    return Condition(labels, features, torch.ones(BATCH, config.text_length, dtype=torch.bool))


@pytest.mark.parametrize(
    ("dtype", "guidance"), [(torch.float32, 1.0), (torch.bfloat16, 2.0)], ids=["float32", "guided bfloat16"]
)
@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        ({"num_kv_heads": 1, "num_layers": 6}, {}),
        ({"text_dim": 32, "text_length": 20, "condition_bias": True}, {}),
        (LLAMAGEN, {}),
        (LLAMAGEN | {"text_dim": 512, "num_layers": 1, "grid": [2, 2]}, {}),
        ({}, {"guidance_interval": (0.75, 1.0)}),
        (MANY_CODES, {}),
        (MANY_CODES, {"top_k": 100}),
        (MANY_CODES, {"top_p": 0.9}),
        (MANY_CODES, {"top_k": 100, "top_p": 0.9, "min_p": 0.1}),
        (MANY_CODES, {"min_p": 0.1}),
        (MANY_CODES, {"window": 8}),
        (MANY_CODES, {"window": 8, "temperature": 0.0}),
        (MANY_CODES, {"window": 8, "top_k": 100}),
        (MANY_CODES, {"window": 8, "top_k": 100, "top_p": 0.9, "min_p": 0.1}),
        (MANY_CODES, {"window": 50}),
    ],
)
def test_sampling(dtype, guidance, changes, settings, monkeypatch):
    monkeypatch.setattr("wvq.generator.base.linear.can_pack", lambda weight: False)
    model, settings = build(dtype, **changes).eval(), SamplingSettings(guidance_scale=guidance, **settings)
    given = condition(model.config)
    sample_codes(model, given, list(range(BATCH)), settings)  # tables that stay
    with LiveBytes() as live:
        sample_codes(model, given, list(range(BATCH)), settings)
    estimate = sampling_bytes(model.config, BATCH, settings, dtype.itemsize)
    assert estimate == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize(
    ("dtype", "guidance"), [(torch.float32, 1.0), (torch.bfloat16, 2.0)], ids=["float32", "guided bfloat16"]
)
@pytest.mark.parametrize(
    ("changes", "settings", "given"),
    [
        ({}, {"passes": 8}, 0),
        ({}, {"passes": 64}, 0),
        ({}, {"passes": 8}, 40),
        ({}, {"passes": 8, "guidance_interval": (0.75, 1.0)}, 0),
        ({"text_dim": 32, "text_length": 20, "num_kv_heads": 1, "grid": [16, 16], "num_layers": 1}, {"passes": 4}, 0),
        ({"grid": [16, 16], "num_layers": 1}, {"passes": 4}, 100),
        (MANY_CODES, {"passes": 4}, 0),
        (MANY_CODES, {"passes": 4, "top_k": 100, "top_p": 0.9}, 0),
    ],
)
def test_sampling_of_several_codes_a_pass(dtype, guidance, changes, settings, given, monkeypatch):
    monkeypatch.setattr("wvq.generator.base.linear.can_pack", lambda weight: False)
    model = build(dtype, target_positions=True, **changes).eval()
    settings, seeds, asked = (
        SamplingSettings(guidance_scale=guidance, **settings),
        list(range(BATCH)),
        condition(model.config),
    )
    fixed = torch.full((BATCH, *model.config.grid), -1)
    fixed.view(BATCH, -1)[:, :given] = 0
    sample_codes(model, asked, seeds, settings, fixed=fixed)  # tables that stay
    with LiveBytes() as live:
        sample_codes(model, asked, seeds, settings, fixed=fixed)
    estimate = sampling_bytes(model.config, BATCH, settings, dtype.itemsize, given)
    assert estimate == pytest.approx(live.peak, rel=0.1)


def test_codes_that_are_given_run_in_one_pass(monkeypatch):
    monkeypatch.setattr("wvq.generator.base.linear.can_pack", lambda weight: False)
    model, settings = build().eval(), SamplingSettings(guidance_scale=2.0)
    fixed = torch.zeros(BATCH, 8, 8, dtype=torch.int64)
    fixed[:, -1] = -1
    sample_codes(model, condition(model.config), list(range(BATCH)), settings, fixed=fixed)
    with LiveBytes() as live:
        sample_codes(model, condition(model.config), list(range(BATCH)), settings, fixed=fixed)
    assert sampling_bytes(model.config, BATCH, settings, given=56) == pytest.approx(live.peak, rel=0.1)
    assert sampling_bytes(model.config, BATCH, settings) < 0.8 * live.peak


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.0, "token_dropout": 0.0},
        {"num_kv_heads": 1, "qk_norm": True},
        {"num_codes": 8192, "num_layers": 1},
        {"text_dim": 32, "text_length": 20},
        LLAMAGEN,
        LLAMAGEN | {"text_dim": 512, "num_layers": 1, "grid": [2, 2]},
        {"hidden_size": 256, "num_layers": 2, "grid": [2, 2]},
    ],
    ids=["plain", "no dropout", "few keys", "many codes", "text", "LlamaGen's", "wide texts", "large weights"],
)
def test_training(mixed, checkpointing, changes):
    codes = torch.zeros(BATCH, *(SIZES | changes)["grid"], dtype=torch.int64)
    with LiveBytes() as live:
        model = build(**changes).train()
        if checkpointing:
            enable_checkpointing(model)
        given = condition(model.config)
        optimizer = build_optimizer([{"params": list(model.parameters()), "lr": 1e-3, "betas": (0.9, 0.95)}])
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = model(codes, given.class_labels, given.text_features, given.text_mask).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in model.parameters())
    estimate = training_bytes(model.config, parameters, BATCH, False, checkpointing, mixed=mixed, fused=False)
    assert estimate == pytest.approx(live.peak, rel=0.1)


def test_what_else_training_holds():
    config = ImageCodeTransformerConfig(size="B", num_classes=1000)
    plain = training_bytes(config, 10**8, 4, False, False)
    assert training_bytes(config, 10**8, 4, True, False) == plain + 4 * 10**8
    assert training_bytes(config, 10**8, 4, False, False, gradients=8) == plain + 8 * 10**8
    assert training_bytes(config, 10**8, 4, False, False, between=10**12) == 12 * 10**8 + 10**12
    assert training_bytes(config, 10**8, 1, False, True, gradients=0) >= 16 * 10**8  # gradients, in the end


@pytest.mark.parametrize("changes", [{}, {"num_codes": 8192}, {"num_codes": 8192, "code_dim": 4}])
def test_losses_of_whole_pictures(changes):
    model, codes = build(**changes).eval(), torch.zeros(BATCH, 8, 8, dtype=torch.int64)
    with torch.no_grad():
        model(codes)
        with LiveBytes() as live:
            model(codes)
    assert whole_pass_bytes(model.config, BATCH) == pytest.approx(live.peak, rel=0.1)


@pytest.fixture
def pretended_card(monkeypatch):
    """Tensors without values on a GPU, with the kernels that it has: fused norms, dropout, attention, and autocast."""

    def attention(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]

    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    rotary_table.cache_clear()
    with FakeTensorMode(), torch.device("cuda"):
        yield
    rotary_table.cache_clear()


@pytest.mark.usefixtures("pretended_card")
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.0}, {"hidden_size": 128, "num_heads": 4}])
def test_what_a_block_keeps_on_a_card(mixed, changes):
    """Between two models: it leaves the ends aside. The backward pass needs a real card."""
    live, estimated = [], []
    for layers in (2, 4):
        with LiveBytes() as counted:
            model = ImageCodeTransformer(ImageCodeTransformerConfig(**SIZES | changes | {"num_layers": layers})).train()
            codes = torch.zeros(BATCH, 8, 8, dtype=torch.int64)
            with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
                loss = model(codes).loss
            live.append(counted.now - FLOAT * sum(p.numel() for p in model.parameters()))
        estimated.append(training_bytes(model.config, 0, BATCH, False, False, mixed=mixed))
        del loss, model
    assert estimated[1] - estimated[0] == pytest.approx(live[1] - live[0], rel=0.02)


def test_a_compiled_step_takes_less():
    config = ImageCodeTransformerConfig(size="L", num_classes=1000)
    plain, compiled = (training_bytes(config, 0, 64, False, False, mixed=True, compiled=flag) for flag in (False, True))
    assert 0.7 * plain < compiled < 0.9 * plain
