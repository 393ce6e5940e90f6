"""Settings of a quantizer that it does not have or that are out of range: one ConfigError that names the field."""

import pytest
import torch

from wvq.errors import ConfigError
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.registry import QUANTIZERS, build_codebook

SHAPES = {"fsq": {"num_codes": 16, "levels": [4, 2, 2]}, "lfq": {"num_codes": 8}}


def configure(name="vanilla", **fields):
    shape = {"num_codes": 16, "code_dim": 3, **SHAPES.get(name, {})}
    return WassersteinVQConfig(**{"image_size": 16, "quantizer": name, **shape, **fields})


def refused(field, name, **fields):
    configure(name)
    with pytest.raises(ConfigError, match=rf"\b{field}\b must be") as error:
        configure(name, **fields)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
@pytest.mark.parametrize("value", [0, -1, 2.5, True, None, "16", 2**31])
def test_num_codes_is_a_positive_integer_below_two_to_the_31(name, value):
    refused("num_codes", name, num_codes=value)


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_code_dim_is_a_multiple_of_num_groups(name):
    assert "2" in refused("code_dim", name, num_groups=2)
    refused("code_dim", name, num_groups=6)  # more codebooks than dims


@pytest.mark.parametrize("field", ["num_groups", "code_dim", "window_size", "num_projections", "num_samples"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_sizes_are_positive_integers(field, value):
    refused(field, "sliced", **{field: value})


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_affine_interval_is_a_positive_integer(value):
    refused("affine_interval", "affine", affine_interval=value)


@pytest.mark.parametrize("name", ["wasserstein", "sliced", "mmd", "affine"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "2", None])
def test_target_scale_is_a_positive_number(name, value):
    assert configure(name, target_scale=2).target_scale == 2
    refused("target_scale", name, target_scale=value)


@pytest.mark.parametrize("name", ["vanilla", "ema", "online", "linear", "fsq", "lfq"])
def test_a_target_scale_needs_an_alignment(name):
    assert name in refused("target_scale", name, target_scale=2)


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_units_are_those_of_a_distance(name):
    if name in ("wasserstein", "sliced"):
        assert "alignment_units" not in configure(name).to_dict()
        assert configure(name, alignment_units="absolute").to_dict()["alignment_units"] == "absolute"
        assert configure(name, alignment_units="absolute").identity() == configure(name).identity()
    else:
        assert name in refused("alignment_units", name, alignment_units="absolute")
    refused("alignment_units", name, alignment_units="pixels")


@pytest.mark.parametrize("name", ["wasserstein", "sliced"])
def test_relative_distances_have_no_unit_and_absolute_ones_that_of_the_features(name):
    generator = torch.Generator().manual_seed(0)
    features, codes = (torch.randn(count, 3, generator=generator) for count in (200, 16))
    values = {}
    for units in ("relative", "absolute"):
        for unit in (1.0, 10.0):
            quantizer = build_codebook(configure(name, alignment_units=units))
            quantizer.load_state_dict({"codebook": unit * codes})
            torch.manual_seed(0)  # the sliced distance draws directions
            values[units, unit] = quantizer(unit * features).losses["alignment"].item()
    assert values["relative", 10.0] == pytest.approx(values["relative", 1.0], rel=1e-4)
    assert values["absolute", 10.0] == pytest.approx(10 * values["absolute", 1.0], rel=1e-4)
    assert values["absolute", 1.0] != pytest.approx(values["relative", 1.0], rel=1e-2)


FREE = ("vanilla", "wasserstein", "sliced", "mmd")  # methods whose codes are moved by gradient alone
OTHERS = sorted({*QUANTIZERS} - {*FREE})


@pytest.mark.parametrize("name", OTHERS)
def test_codes_that_a_method_places_are_compared_by_distance_and_at_their_lengths(name):
    assert name in refused("l2_normalize", name, l2_normalize=True)
    assert name in refused("similarity", name, similarity="dot")


@pytest.mark.parametrize("name", FREE)
def test_codes_moved_by_gradient_may_be_of_length_one_or_chosen_by_their_product(name):
    assert configure(name, l2_normalize=True).identity().keys() - configure(name).identity().keys() == {"l2_normalize"}
    assert configure(name, similarity="dot").identity()["similarity"] == "dot"
    refused("l2_normalize", name, l2_normalize="yes")
    assert "one of euclidean, dot" in refused("similarity", name, similarity="cosine")


def test_codes_of_length_one_are_of_one_scale_and_spread_no_wider():
    refused("l2_normalize", "vanilla", l2_normalize=True, scales=[1, 2])
    refused("target_scale", "sliced", l2_normalize=True, target_scale=2)
    assert configure(similarity="dot", scales=[1]).similarity == "dot"


WEIGHTLESS = {
    "alignment_weight": ["vanilla", "ema", "online", "linear", "fsq", "lfq", "affine"],
    "entropy_weight": sorted({*QUANTIZERS} - {"lfq"}),
    "codebook_weight": ["ema", "fsq", "lfq"],
    "commitment_weight": ["fsq"],
}


@pytest.mark.parametrize(("field", "name"), [(field, name) for field, names in WEIGHTLESS.items() for name in names])
def test_a_weight_needs_its_term(field, name):
    assert name in refused(field, name, **{field: 0.5})
    assert getattr(configure(name, **{field: 0}), field) == 0


@pytest.mark.parametrize("field", WEIGHTLESS)
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1"])
def test_weights_are_finite_and_not_negative(field, value):
    refused(field, "lfq" if field == "entropy_weight" else "sliced", **{field: value})


@pytest.mark.parametrize("value", ["foo", "STE", "", None, 1])
def test_gradient_estimator_is_registered(value):
    assert "one of ste, rotation" in refused("gradient_estimator", "vanilla", gradient_estimator=value)


def test_gradient_estimator_is_no_list():
    refused("gradient_estimator", "vanilla", gradient_estimator=["ste"])


@pytest.mark.parametrize("name", ["ema", "online"])
@pytest.mark.parametrize("value", [0, 1, -0.5, float("nan"), "0.9"])
def test_ema_decay_lies_between_zero_and_one(name, value):
    assert configure(name, ema_decay=0.5).ema_decay == 0.5
    refused("ema_decay", name, ema_decay=value)


@pytest.mark.parametrize("value", [[1, 4, 4], [4, 2, 2.5], [0, 4, 4], [], 16, "442", [True, 4, 4]])
def test_levels_are_integers_of_at_least_two(value):
    refused("levels", "fsq", levels=value)


def must_hold(levels, **fields):
    with pytest.raises(ConfigError, match=r"^levels must (hold|be given)") as error:
        configure("fsq", levels=levels, **fields)
    return str(error.value)


def test_levels_fit_the_dims_and_the_codes():
    for levels in ([4, 4], [2, 2, 2, 2]):
        assert "3 numbers" in must_hold(levels)
    assert "levels must be given" in must_hold(None)
    assert "must be 18, the product of levels" in refused("num_codes", "fsq", levels=[3, 3, 2])
    assert configure("fsq", code_dim=6, num_groups=2).levels == [4, 2, 2]
    assert "3 numbers" in must_hold([2] * 6, code_dim=6, num_groups=2, num_codes=64)


def test_lfq_has_two_to_the_number_of_bits_codes():
    assert "must be 8" in refused("num_codes", "lfq", num_codes=16)
    assert configure("lfq", code_dim=6, num_groups=2).num_codes == 8
    with pytest.raises(ConfigError, match="num_codes must be 8"):
        configure("lfq", code_dim=6, num_groups=2, num_codes=64)


GRID = {"image_size": 64, "scales": [1, 2, 4]}  # a grid of side 4


@pytest.mark.parametrize(
    "value",
    [[], [4, 2, 1], [1, 2, 2, 4], [0, 4], [1.5, 4], [True, 4], ["1", 4], 4, "124", [1, 2], [1, 2, 4, 5], [-1, 4]],
)
def test_scales_rise_to_the_side_of_the_grid(value):
    assert configure("sliced", **GRID).scales == [1, 2, 4]
    assert configure("sliced", image_size=64, scales=[4]).sequence_length == 16
    with pytest.raises(ConfigError, match=r"\bscales must be .*(rising|ends on 4)") as error:
        configure("sliced", **{**GRID, "scales": value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "4"])
def test_num_scale_convs_is_an_integer(value):
    assert configure("sliced", **GRID, num_scale_convs=0).num_scale_convs == 0
    refused("num_scale_convs", "sliced", **GRID, num_scale_convs=value)


@pytest.mark.parametrize("value", [0, -0.5, 1.5, float("nan"), None, "0.5"])
def test_scale_conv_ratio_is_a_share(value):
    assert configure("sliced", **GRID, scale_conv_ratio=1).scale_conv_ratio == 1
    refused("scale_conv_ratio", "sliced", **GRID, scale_conv_ratio=value)


@pytest.mark.parametrize(
    "value",
    [[], [1, 2], [1, 2, 3, 4], [1, -1, 2], [1, float("nan"), 2], [1, float("inf"), 2], [0, 0, 0], [1, "2", 3], 2],
)
def test_scale_weights_are_one_number_a_scale(value):
    assert configure("sliced", **GRID, scale_weights=(0, 2.5, 1)).scale_weights == [0, 2.5, 1]
    refused("scale_weights", "sliced", **GRID, scale_weights=value)


def test_scale_weights_need_scales():
    assert "null where no scales are given" in refused("scale_weights", "sliced", scale_weights=[1, 2, 3])


def test_scales_share_one_codebook():
    assert "where scales are given" in refused("num_groups", "sliced", **GRID, code_dim=4, num_groups=2)


def test_the_layout_follows_from_the_fields():
    layouts = {
        "grid": ({}, [[4, 4]], 16),
        "product": ({"code_dim": 6, "num_groups": 2}, [[4, 4, 2]], 32),
        "multi-scale": ({"scales": [1, 2, 4]}, [[1, 1], [2, 2], [4, 4]], 21),
    }
    for kind, (fields, shapes, length) in layouts.items():
        config = configure("sliced", image_size=64, **fields)
        assert config.code_layout == {"kind": kind, "shapes": shapes}
        assert config.sequence_length == length


@pytest.mark.parametrize("name", ["wassertein", "Wasserstein", "wasserstein "])
def test_an_unknown_quantizer_is_an_error_with_the_near_match(name):
    with pytest.raises(ConfigError, match=r'" is unknown \(did you mean "wasserstein"\?\); one of vanilla, ema'):
        configure(name)


@pytest.mark.parametrize("value", [None, 3, ["sliced"]])
def test_a_quantizer_that_is_no_name_is_an_error(value):
    with pytest.raises(ConfigError, match=r"^quantizer .* is unknown"):
        WassersteinVQConfig(image_size=16, quantizer=value)
