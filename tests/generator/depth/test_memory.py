"""Estimates of memory over product codes, within a tenth of the tensors that are alive at once."""

import pytest
import torch

from benchmarks.live_bytes import LiveBytes
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.depth.configuration import DepthTransformerConfig
from wvq.generator.depth.modeling import DepthTransformer
from wvq.generator.likelihood import code_log_probabilities
from wvq.generator.memory import sampling_bytes, training_bytes, whole_pass_bytes
from wvq.generator.sampling import sample_codes
from wvq.training.acceleration import enable_checkpointing
from wvq.training.optimization import build_optimizer

SIZES = {"hidden_size": 64, "num_layers": 3, "num_heads": 2, "grid": [8, 8], "num_codes": 256, "num_classes": 3}
MANY_CODES = {"num_codes": 16_384, "hidden_size": 32, "grid": [4, 4]}
BATCH = 8


def build(dtype: torch.dtype = torch.float32, **changes) -> DepthTransformer:
    torch.manual_seed(0)
    return DepthTransformer(DepthTransformerConfig(**SIZES | changes)).to(dtype)


def condition(config: DepthTransformerConfig) -> Condition:
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
        ({"num_groups": 8, "depth_layers": 4}, {}),
        ({"depth_head": "parallel"}, {}),
        ({"text_dim": 32, "text_length": 20, "condition_bias": True}, {}),
        ({}, {"guidance_interval": (0.75, 1.0)}),
        (MANY_CODES, {}),
        (MANY_CODES, {"top_k": 100, "top_p": 0.9, "min_p": 0.1}),
        (MANY_CODES | {"depth_head": "parallel"}, {"top_p": 0.9}),
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


def test_codes_that_are_given_run_in_one_pass(monkeypatch):
    monkeypatch.setattr("wvq.generator.base.linear.can_pack", lambda weight: False)
    model, settings = build().eval(), SamplingSettings(guidance_scale=2.0)
    fixed = torch.zeros(BATCH, 8, 8, 2, dtype=torch.int64)
    fixed[:, -1] = -1
    sample_codes(model, condition(model.config), list(range(BATCH)), settings, fixed=fixed)
    with LiveBytes() as live:
        sample_codes(model, condition(model.config), list(range(BATCH)), settings, fixed=fixed)
    assert sampling_bytes(model.config, BATCH, settings, given=112) == pytest.approx(live.peak, rel=0.1)
    assert sampling_bytes(model.config, BATCH, settings) < 0.8 * live.peak


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth_head": "parallel"},
        {"num_groups": 8, "dropout": 0.0, "token_dropout": 0.0, "code_dim": 8},
        {"num_codes": 4096, "num_layers": 1, "depth_layers": 1},
        {"num_codes": 4096, "num_layers": 1, "depth_head": "parallel"},
        {"depth_hidden_size": 32, "qk_norm": True},
        {"text_dim": 32, "text_length": 20},
        {"hidden_size": 256, "num_layers": 2, "grid": [2, 2]},
    ],
    ids=[
        "plain",
        "parallel",
        "eight codebooks",
        "many codes",
        "parallel many codes",
        "narrow depth",
        "text",
        "weights",
    ],
)
def test_training(mixed, checkpointing, changes):
    with LiveBytes() as live:
        model = build(**changes).train()
        if checkpointing:
            enable_checkpointing(model)
        given = condition(model.config)
        codes = torch.zeros(BATCH, model.config.sequence_length, dtype=torch.int64)
        optimizer = build_optimizer([{"params": list(model.parameters()), "lr": 1e-3, "betas": (0.9, 0.95)}])
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                conditions = given.class_labels, given.text_features, given.text_mask
                loss = model(codes, *conditions, return_logits=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in model.parameters())
    estimate = training_bytes(model.config, parameters, BATCH, False, checkpointing, mixed=mixed, fused=False)
    assert estimate == pytest.approx(live.peak, rel=0.1)


def test_logits_over_all_codebooks_are_most_of_it_where_codes_are_many():
    few, many = (DepthTransformerConfig(size="S", grid=[16, 16], num_codes=codes) for codes in (256, 65_536))
    plain, large = (training_bytes(config, 0, 8, False, False, mixed=True) for config in (few, many))
    assert large > 4 * plain
    one, two = (whole_pass_bytes(DepthTransformerConfig(size="S", num_groups=groups), 8) for groups in (2, 4))
    assert 1.8 * one < two < 2.2 * one


@pytest.mark.parametrize("changes", [{}, {"num_codes": 4096}, {"num_codes": 4096, "depth_head": "parallel"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_whole_pictures(changes, dtype):
    model = build(dtype, **changes).eval()
    codes = torch.zeros(BATCH, model.config.sequence_length, dtype=torch.int64)
    code_log_probabilities(model, codes, Condition())
    with LiveBytes() as live:
        code_log_probabilities(model, codes, Condition())
    assert whole_pass_bytes(model.config, BATCH, dtype.itemsize) == pytest.approx(live.peak, rel=0.1)
