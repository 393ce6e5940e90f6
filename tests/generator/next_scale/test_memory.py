"""Estimates of a next-scale generator's memory, within a tenth of the tensors that are alive at once."""

import pytest
import torch

from benchmarks.live_bytes import LiveBytes
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.memory import sampling_bytes, training_bytes, whole_pass_bytes
from wvq.generator.next_scale.configuration import NextScaleTransformerConfig
from wvq.generator.next_scale.modeling import NextScaleTransformer
from wvq.generator.sampling import sample_codes
from wvq.training.acceleration import enable_checkpointing
from wvq.training.optimization import build_optimizer

SIZES = {"hidden_size": 64, "num_layers": 3, "num_heads": 2, "grid": [8, 8], "scales": [1, 2, 4, 8], "code_dim": 8}
SIZES |= {"num_codes": 512, "num_classes": 3}
MANY_CODES = {"num_codes": 8_192, "hidden_size": 32, "grid": [4, 4], "scales": [1, 2, 4]}
TEXT = {"text_dim": 32, "text_length": 20}
PREFIX = {"conditioning": "prefix"}
VAR = {"norm": "layer", "feed_forward": "gelu", "qk_norm": "l2", "attention_bias": True}
BATCH = 8


def build(dtype: torch.dtype = torch.float32, **changes) -> NextScaleTransformer:
    torch.manual_seed(0)
    return NextScaleTransformer(NextScaleTransformerConfig(**SIZES | changes)).to(dtype)


def condition(config: NextScaleTransformerConfig) -> Condition:
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
        ({"num_layers": 12}, {}),
        ({"conditioning": "adaptive_shared"}, {}),
        (PREFIX | TEXT | {"condition_bias": True}, {}),
        (VAR | TEXT, {}),
        ({"hidden_size": 256}, {}),
        (MANY_CODES, {}),
        (MANY_CODES, {"top_k": 100}),
        (MANY_CODES, {"top_p": 0.9}),
        (MANY_CODES, {"top_k": 100, "top_p": 0.9, "min_p": 0.1}),
        (MANY_CODES, {"temperature": 0.0}),
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


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.0, "token_dropout": 0.0},
        {"conditioning": "adaptive_shared", "qk_norm": "none"},
        PREFIX | TEXT,
        VAR,
        TEXT,
        {"num_codes": 8192, "num_layers": 1},
        {"hidden_size": 256, "num_layers": 2, "grid": [2, 2], "scales": [1, 2]},
    ],
    ids=["plain", "no dropout", "shared", "prefix", "var", "text", "many codes", "large weights"],
)
def test_training(mixed, checkpointing, changes):
    with LiveBytes() as live:
        model = build(**changes).train()
        if checkpointing:
            enable_checkpointing(model)
        given, config = condition(model.config), model.config
        codes = torch.zeros(BATCH, config.sequence_length, dtype=torch.int64)
        optimizer = build_optimizer([{"params": list(model.parameters()), "lr": 1e-3, "betas": (0.9, 0.95)}])
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = model(codes, given.class_labels, given.text_features, given.text_mask).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in model.parameters())
    estimate = training_bytes(config, parameters, BATCH, False, checkpointing, mixed=mixed, fused=False)
    assert estimate == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"num_codes": 8192}, {"hidden_size": 256}, PREFIX | TEXT])
def test_losses_of_whole_pictures(changes):
    model = build(**changes).eval()
    codes, given = torch.zeros(BATCH, model.config.sequence_length, dtype=torch.int64), condition(model.config)
    with torch.no_grad():
        model(codes, given.class_labels, given.text_features, given.text_mask)
        with LiveBytes() as live:
            model(codes, given.class_labels, given.text_features, given.text_mask)
    assert whole_pass_bytes(model.config, BATCH) == pytest.approx(live.peak, rel=0.1)


def test_a_compiled_step_takes_less():
    config = NextScaleTransformerConfig(size="d16", num_classes=1000)
    plain, compiled = (training_bytes(config, 0, 64, False, False, mixed=True, compiled=flag) for flag in (False, True))
    assert 0.7 * plain < compiled < 0.95 * plain
