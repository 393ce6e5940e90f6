"""Steps by kernels against the plain loop; run by test_fused.py, interpreted on the CPU or compiled."""

import pytest
import torch

from tests.tiny import TEXT_DIM, make_generator
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.captured import using
from wvq.generator.next_code.kernels import linear
from wvq.generator.reduced import reduce_weights
from wvq.generator.sampling import sample_codes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EARLY = DEVICE == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
MODES = ["fused_graph", *(["overlapped_graph"] if EARLY else [])]
SETTINGS = {
    "guided": {"guidance_scale": 2.0},
    "interval": {"guidance_scale": 3.0, "guidance_schedule": "cosine", "guidance_interval": (0.3, 0.8)},
    "greedy": {"guidance_scale": 1.5, "temperature": 0.0},
    "top-k": {"temperature": 0.8, "top_k": 7},
    "min-p": {"guidance_scale": 2.0, "min_p": 0.05},
    "window": {"window": 2},
}
MODELS = {
    "code vectors": {"code_dim": 4, "target_positions": True},
    "tied": {"head": "tied", "condition_bias": True},
    "grouped heads": {"num_heads": 4, "num_kv_heads": 2},
    "query norm": {"qk_norm": True, "target_positions": True},
    "LlamaGen's": {"hidden_size": 200, "num_layers": 1, "prefix_rotary": "erased", "null_text": "features"},
    "uneven": {"hidden_size": 40, "intermediate_size": 72, "num_codes": 33},
}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    monkeypatch.setattr(linear, "PROGRAMS", 1)


def model_and_condition(count: int, **changes):
    """A model conditional on class and text, and a condition with padding."""
    model = make_generator(grid=[2, 2], num_classes=3, text_dim=TEXT_DIM, text_length=5, **changes)
    features = torch.randn(count, 5, TEXT_DIM, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(5) >= torch.arange(count)[:, None] % 6
    return model, Condition(torch.arange(count) % 3, features, mask)


def same_codes(model, condition: Condition, count: int, fixed=None, **settings) -> None:
    """The kernels' codes on the device are those of the plain loop on the CPU."""
    found = []
    for mode, device in (("loop", "cpu"), *((mode, DEVICE) for mode in MODES)):
        model.to(device)
        there = Condition(*(None if part is None else part.to(device) for part in vars(condition).values()))
        given = None if fixed is None else fixed.to(device)
        with using(mode):
            codes = sample_codes(model, there, list(range(count)), SamplingSettings(**settings), fixed=given)
        found.append(codes.cpu())
    assert all(torch.equal(codes, found[0]) for codes in found[1:])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting(settings):
    same_codes(*model_and_condition(2, num_layers=1), 2, **settings)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_every_model(changes):
    same_codes(*model_and_condition(1, **changes), 1, guidance_scale=2.0)


def test_more_rows_than_a_kernel_multiplies():
    same_codes(*model_and_condition(3), 3, guidance_scale=2.0)  # filled up to 4 pictures: 8 rows


@pytest.mark.parametrize("count", [1, 3], ids=["kernels", "libraries"])
def test_given_codes(count):
    fixed = torch.full((count, 2, 2), -1)
    fixed[:, 0, 0], fixed[0, 1, 0] = torch.arange(count), 7
    same_codes(*model_and_condition(count, num_layers=1), count, fixed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["bfloat16", "bf16"])
@pytest.mark.parametrize("count", [1, 5], ids=["kernels", "libraries"])
def test_bfloat16(kind, count, mode):
    """Rounding decides some draws, so codes are likely under the plain loop's model instead of equal."""
    model, condition = model_and_condition(count, num_layers=1)
    model = model.bfloat16() if kind == "bfloat16" else reduce_weights(model, kind)
    model.to(DEVICE)
    condition = Condition(*(part.to(DEVICE) for part in vars(condition).values()))
    with using(mode):
        codes = sample_codes(model, condition, list(range(count)), SamplingSettings(temperature=0.0))
    with torch.no_grad():
        logits = model(codes, condition.class_labels, condition.text_features, condition.text_mask).logits.float()
    lost = logits.amax(-1) - logits.gather(-1, codes.flatten(1)[..., None])[..., 0]
    assert lost.max() < 0.05 * logits.std()  # each code is the likeliest one or as good as it
