"""Estimates of memory: exact where the sizes are known, from below where they are not, and in the error's line."""

import re

import pytest
import torch

from tests.tiny import make_generator
from wvq.errors import ConfigError
from wvq.generator.configuration import ImageCodeTransformerConfig
from wvq.generator.memory import GIB, available_memory, require_memory, sampling_bytes, training_bytes
from wvq.generator.modeling import KeyValueCache


def test_sampling_holds_the_cache_and_the_logits():
    model = make_generator(num_classes=3, num_kv_heads=1)
    cache = KeyValueCache(model.config, 6, torch.zeros(1)).memory
    assert sampling_bytes(model.config, 6) == cache.numel() * 4 + 6 * 8 * 4 * 32


def test_training_grows_with_what_it_holds():
    config = ImageCodeTransformerConfig(size="B", num_classes=1000)
    few, many = (training_bytes(config, 111_000_000, batch, False, False) for batch in (1, 32))
    assert few > 111_000_000 * 16
    assert many > few
    assert training_bytes(config, 111_000_000, 32, True, False) == many + 111_000_000 * 4
    assert training_bytes(config, 111_000_000, 32, False, True) < many
    activations = training_bytes(config, 0, 1, False, False)
    assert 0.05 * GIB < activations < 0.3 * GIB  # 257 tokens, 12 blocks of 768, K = 16,384


def test_the_line_names_need_and_remedy(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("wvq.memory.available_memory", lambda _: 2 * GIB)
    require_memory(2 * GIB, cpu, "this", "do that")
    with pytest.raises(
        ConfigError, match=re.escape("this needs about 3.0 GiB of memory where 2.0 GiB are free; do that")
    ):
        require_memory(3 * GIB, cpu, "this", "do that")


def test_free_memory_is_told_for_the_cpu_alone_here():
    assert available_memory(torch.device("cpu")) > 2**20
    assert available_memory(torch.device("meta")) is None
