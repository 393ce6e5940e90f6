"""A training step of the generator never makes the processor wait for the device."""

import pytest
import torch

from tests.waiting import allow_meta, no_waiting
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, ObjectiveConfig
from wvq.generator.task import GeneratorTask
from wvq.settings.train import TrainConfig

BATCH = {
    "codes": ((3, 16), torch.int64),
    "class_labels": ((3,), torch.int64),
    "text_features": ((3, 4, 6), torch.float32),
    "text_mask": ((3, 4), torch.bool),
}


@pytest.mark.parametrize("fields", [{"condition_bias": True}, {"code_dim": 2, "head": "tied", "qk_norm": True}])
def test_no_step_waits(monkeypatch, fields):
    allow_meta(monkeypatch)
    sizes = {"num_codes": 32, "grid": [4, 4], "hidden_size": 32, "num_layers": 1, "num_heads": 2}
    conditions = {"num_classes": 3, "text_dim": 6, "text_length": 4, "target_positions": True}
    with torch.device("meta"):
        model = ImageCodeTransformer(ImageCodeTransformerConfig(**sizes, **conditions, **fields))
    objective = ObjectiveConfig(label_smoothing=0.1, random_order=1.0)
    task = GeneratorTask(None, None, ConditionConfig(text=True), objective, TrainConfig(), {})
    batch = {name: torch.zeros(shape, dtype=dtype, device="meta") for name, (shape, dtype) in BATCH.items()}
    task.loss(model, batch, 0, 0.1).loss.backward()  # makes tables that stay
    with no_waiting():
        task.loss(model, batch, 0, 0.1).loss.backward()
