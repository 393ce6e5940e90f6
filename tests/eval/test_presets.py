"""Presets carry the published protocol whole, and nothing may quietly differ from it."""

import pytest

from wvq.errors import ConfigError
from wvq.eval.presets import PRESETS, find_preset, fixed_by
from wvq.generator.sampling_settings import SamplingSettings


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_whole_protocol(name):
    preset = find_preset(name)
    settings = SamplingSettings(**preset.sampling)
    assert {"guidance_scale", "temperature", "top_k", "top_p", "min_p"} <= set(preset.sampling)
    assert settings.guidance_scale > 1
    assert (preset.num_images, preset.classes, preset.reference_kind) == (50_000, "balanced", "train")
    assert 1 < preset.published["fid"] < 6
    assert (preset.resize or preset.image_size) == 256
    assert name.endswith(f"_{preset.image_size}")


def test_llamagens_and_rars_scales():
    assert SamplingSettings(**find_preset("llamagen_b_256").sampling).scales(256) == [2.0] * 256
    scales = SamplingSettings(**find_preset("rar_b_256").sampling).scales(256)
    assert scales[0] == 1
    assert scales[-1] == pytest.approx(16, abs=0.05)
    assert scales[128] < 3  # the power keeps the first half free


def test_what_a_preset_fixes_may_be_repeated_and_not_changed():
    assert fixed_by("llamagen_xl_384", {})["resize"] == 256
    given = {"guidance_scale": 2.0, "num_images": None, "guidance_interval": [0.0, 1.0], "batch_size": 8}
    fixed = fixed_by("llamagen_b_256", given)
    assert fixed["num_images"] == 50_000
    assert "batch_size" not in fixed
    with pytest.raises(ConfigError, match=r"preset llamagen_b_256 has guidance_scale 2\.0, and 1.5 is given"):
        fixed_by("llamagen_b_256", given | {"guidance_scale": 1.5})
    with pytest.raises(ConfigError, match=r'preset "llamagen_b" is unknown \(did you mean "llamagen_b_256"\?\)'):
        fixed_by("llamagen_b", {})
