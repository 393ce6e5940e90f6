"""Presets carry the published protocol whole, and nothing may quietly differ from it."""

from dataclasses import replace

import pytest

from wvq.errors import ConfigError
from wvq.eval.presets import PRESETS, find_preset, with_preset
from wvq.eval.recipes import GenerationEvaluation
from wvq.generator.base.guidance import scale_guidance
from wvq.generator.base.sampling_settings import SamplingSettings


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_whole_protocol(name):
    preset = find_preset(name)
    settings = SamplingSettings(**preset.sampling)
    assert {"guidance_scale", "temperature", "top_k", "top_p", "min_p"} <= set(preset.sampling)
    assert settings.guidance_scale > 1
    assert (preset.num_images, preset.classes, preset.reference_kind) == (50_000, "balanced", "train")
    assert 1 < preset.published["fid"] < 7
    assert (preset.resize or preset.image_size) == 256
    assert name.endswith(f"_{preset.image_size}")


def test_llamagens_and_rars_scales():
    assert SamplingSettings(**find_preset("llamagen_b_256").sampling).scales(256) == [2.0] * 256
    scales = SamplingSettings(**find_preset("rar_b_256").sampling).scales(256)
    assert scales[0] == 1
    assert scales[-1] == pytest.approx(16, abs=0.05)
    assert scales[128] < 3  # the power keeps the first half free


def test_vars_scale_rises_over_its_ten_maps():
    settings = SamplingSettings(**find_preset("var_d16_256").sampling)
    published = [1.5 * index / 9 for index in range(10)]  # t in (1 + t) c - t u
    assert scale_guidance(settings, 10) == pytest.approx([1 + t for t in published])
    assert (settings.top_k, settings.top_p) == (900, 0.96)


def recipe(preset="llamagen_b_256", **fields):
    return GenerationEvaluation(pipeline="p", reference="r.npz", preset=preset, **fields)


def test_a_preset_is_a_function_from_recipe_to_recipe():
    asked = recipe("llamagen_xl_384", batch_size=8, sampling={"top_k": None, "deterministic": True})
    given = with_preset(asked)
    assert (given.num_images, given.classes, given.feature_network, given.reference_kind) == (
        *(50_000, "balanced"),
        *("inception", "train"),
    )
    assert (given.resize, given.batch_size) == (256, 8)
    assert given.sampling == {**find_preset("llamagen_xl_384").sampling, "deterministic": True}
    assert with_preset(given) == given
    assert asked.num_images is None  # it is left as it was
    plain = GenerationEvaluation(pipeline="p")
    assert with_preset(plain) is plain


def test_what_a_preset_fixes_may_be_repeated_and_not_changed():
    with_preset(recipe(sampling={"guidance_scale": 2.0, "guidance_interval": [0.0, 1.0]}, num_images=50_000))
    with pytest.raises(ConfigError, match=r"preset llamagen_b_256 has guidance_scale 2\.0, and 1.5 is given"):
        with_preset(recipe(sampling={"guidance_scale": 1.5}))
    with pytest.raises(ConfigError, match=r"has num_images 50000, and 10 is given"):
        with_preset(recipe(num_images=10))
    with pytest.raises(ConfigError, match=r'preset "llamagen_3b" is unknown \(did you mean "llamagen_3b_384"\?\)'):
        with_preset(recipe("llamagen_3b"))
    for changes in ({"reference": None}, {"weights": "bf16"}):
        with pytest.raises(ConfigError, match=r"give --reference FILE\.npz and leave --weights out"):
            with_preset(replace(recipe(), **changes))
