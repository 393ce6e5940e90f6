"""What drawing needs: the largest of text, codes and decoding, with what stays, within a tenth of what is alive."""

import pytest
import torch
from torch import nn

from benchmarks.live_bytes import LiveBytes
from tests.tiny import make_layout_pipeline, make_pipeline
from wvq.data.layout import codes_shape
from wvq.generator.base.linear import packed_bytes
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.memory import sampling_bytes
from wvq.generator.next_code.captured import using
from wvq.pipelines import memory
from wvq.pipelines.memory import drawing_bytes, read_ahead
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.memory import decoding_bytes
from wvq.tokenizer.modeling import WassersteinVQModel

SMALL = {"image_size": 32, "base_channels": 16, "num_codes": 16, "code_dim": 4}


def copying(monkeypatch):
    """Have convolutions copy input and output beside them, as those of a GPU do."""
    convolve = nn.Conv2d._conv_forward

    def convolve_and_copy(self, x, weight, bias):
        output = convolve(self, x, weight, bias)
        _copies = x.clone(), output.clone()
        return output

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", convolve_and_copy)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [
        {"channel_multipliers": [1, 1, 2, 2]},
        {"channel_multipliers": [1, 2], "attention": False},
        {"channel_multipliers": [1, 4], "num_res_blocks": 1},
        {"channel_multipliers": [1, 2.5], "patch_size": 2, "attention": False},
        {"channel_multipliers": [1], "attention": False},
        {"channel_multipliers": [1, 2], "attention": False, "num_groups": 2},
        {"channel_multipliers": [1, 2], "attention": False, "scales": [1, 4, 16]},
        {"channel_multipliers": [1, 2], "attention": "middle", "latent_channels": 24, "end_kernel": 3},
        {"channel_multipliers": [1, 2], "attention": False, "residual_projector": 128},
        {"channel_multipliers": [1, 1, 2, 2], "l2_normalize": True, "quantizer": "vanilla", "num_codes": 2**20},
    ],
)
def test_decoding(dtype, changes, device_type, monkeypatch):
    if device_type == "cuda":
        copying(monkeypatch)
    torch.manual_seed(0)
    tokenizer = WassersteinVQModel(WassersteinVQConfig(**SMALL | changes)).to(dtype).eval()
    codes = torch.zeros(8, *codes_shape(tokenizer.config.code_layout), dtype=torch.int64)
    with torch.no_grad():
        tokenizer.decode_codes(codes)
        with LiveBytes() as live:
            tokenizer.decode_codes(codes)
    assert decoding_bytes(tokenizer.config, 8, dtype.itemsize, device_type) == pytest.approx(live.peak, rel=0.1)


def test_a_call_needs_its_largest_part(class_pipe, tiny_tokenizer_dir, tmp_path):
    plain, many = SamplingSettings(), SamplingSettings(window=8)
    decoding = decoding_bytes(class_pipe.tokenizer.config, 4)
    assert drawing_bytes(class_pipe, 4, plain) == decoding
    assert drawing_bytes(class_pipe, 8, plain) == 2 * decoding
    pipe = make_pipeline(tiny_tokenizer_dir)
    pipe.generator.config.num_codes = 2**20
    assert drawing_bytes(pipe, 4, many) > 3 * drawing_bytes(pipe, 4, plain) > decoding


def test_a_fixed_group_needs_the_same_for_any_batch(class_pipe):
    fixed = SamplingSettings(deterministic=True)
    assert drawing_bytes(class_pipe, 1, fixed) == drawing_bytes(class_pipe, 100, fixed)
    plain = drawing_bytes(class_pipe, fixed.fixed_rows, SamplingSettings())
    assert drawing_bytes(class_pipe, 1, fixed) == plain + packed_bytes(class_pipe.generator)


def test_recorded_steps_keep_their_cache_beside_decoding_and_use_it_again(class_pipe, monkeypatch):
    settings = SamplingSettings(guidance_scale=2.0)
    several = settings.updated(passes=4)
    config = class_pipe.generator.config
    decoding = decoding_bytes(class_pipe.tokenizer.config, 3)
    drawing = sampling_bytes(config, 4, settings)  # a batch of 3 is filled up to 4
    asked = []
    monkeypatch.setattr(memory, "require_memory", lambda needed, *rest: asked.append(needed))
    with using("eager_graph"):
        assert drawing_bytes(class_pipe, 3, settings) == drawing + decoding
        memory.require_room(class_pipe, 3, settings)
        monkeypatch.setattr(memory, "kept_bytes", lambda model: 1000)
        memory.require_room(class_pipe, 3, settings)
        memory.require_room(class_pipe, 3, several)  # no step is recorded
    alone = max(sampling_bytes(config, 3, several), decoding)
    assert asked == [drawing + decoding, drawing + decoding - 1000, alone]


@pytest.mark.parametrize(
    ("kind", "previews"), [("grid", False), ("product", False), ("multi-scale", False), ("multi-scale", True)]
)
def test_a_call_of_any_layout(kind, previews, monkeypatch):
    monkeypatch.setattr("wvq.generator.base.linear.can_pack", lambda weight: False)
    pipe = make_layout_pipeline(kind, hidden_size=256, num_layers=6)
    call = {"class_labels": 0, "num_images": 16, "seed": 0}
    call |= {"callback": lambda scale, images: None} if previews else {}
    pipe(**call)
    with LiveBytes() as live:
        pipe(**call)
    assert drawing_bytes(pipe, 16, pipe.sampling, previews=previews) == pytest.approx(live.peak, rel=0.1)


def test_previews_are_decoded_beside_what_drawing_holds(scale_pipe, monkeypatch):
    settings, asked = SamplingSettings(guidance_scale=2.0), []
    drawing = sampling_bytes(scale_pipe.generator.config, 4, settings)
    decoding = decoding_bytes(scale_pipe.tokenizer.config, 4)
    features = drawing_bytes(scale_pipe, 4, settings) - max(drawing, decoding)
    assert drawing_bytes(scale_pipe, 4, settings, previews=True) == features + drawing + decoding
    monkeypatch.setattr(memory, "require_memory", lambda needed, *rest: asked.append(needed))
    scale_pipe(num_images=4, seed=0, guidance_scale=2.0, callback=lambda scale, images: None)
    assert asked == [features + drawing + decoding]


def test_how_many_codes_are_read_before_the_first_draw():
    plain, any_order = SamplingSettings(), SamplingSettings(passes=2)
    codes = torch.full((3, 2, 2), -1)
    assert read_ahead(None, plain) == read_ahead(codes, plain) == read_ahead(codes, any_order) == 0
    codes[2, 0, 1], codes[2, 1, 1] = 5, 5
    assert (read_ahead(codes, plain), read_ahead(codes, any_order)) == (0, 2)
    codes[1].flatten()[:3] = 5
    assert read_ahead(codes, plain) == read_ahead(codes, any_order) == 3
