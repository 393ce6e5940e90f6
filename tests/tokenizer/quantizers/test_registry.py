"""What methods declare: the config holds it, the documentation says it, and every form of quantizer builds from it."""

import re
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.quantizers.interface import QuantizerConfig
from wvq.tokenizer.quantizers.registry import METHODS, QUANTIZERS, MethodsConfig, build_codebook, build_quantizer

MANUAL = (Path(__file__).parents[3] / "docs" / "quantizers.md").read_text(encoding="utf-8")
SHORT = {"codebook_weight": "alpha", "commitment_weight": "beta", "alignment_weight": "gamma"}
SHORT |= {"entropy_weight": "entropy"}


def config_of(method):
    """The config class that a method asks for."""
    return get_type_hints(method.__init__)["config"]


def table(heading):
    """Rows of the manual's table whose first column has this heading, as lists of cells."""
    block = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", MANUAL, re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in block.splitlines()]


def number(value):
    return f"{value:g}".removeprefix("0")


def test_methods_go_by_names_of_their_own():
    assert len(QUANTIZERS) == len(METHODS)
    assert all(QUANTIZERS[method.name] is method for method in METHODS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_config_holds_the_fields_of_every_method(method):
    assert issubclass(MethodsConfig, config_of(method))
    assert set(method.defaults) <= set(config_of(method).fields())


def test_the_manual_lists_each_method_with_its_published_weights():
    rows = {re.match(r"`(\w+)`", row[0])[1]: row[-1] for row in table("`quantizer`")}
    declared = {
        method.name: ", ".join(f"{SHORT[name]} {number(value)}" for name, value in method.defaults.items())
        for method in METHODS
    }
    assert rows == declared


def test_the_manual_lists_the_fields_of_single_methods_with_their_defaults():
    plain, declared = MethodsConfig(), {}
    for method in METHODS:
        for name in set(config_of(method).fields()) - set(QuantizerConfig.fields()) - set(SHORT):
            default = getattr(plain, name)
            declared.setdefault(name, ["published" if default is None else f"{default:,}", set()])[1].add(method.name)
    rows = {row[0].strip("`"): [row[1], set(re.findall(r"\w+", row[2]))] for row in table("field")}
    declared["levels"][0] = ""  # it must be given
    assert rows == declared


FORMS = {"one": ({}, 1), "product": ({"num_groups": 2}, 2), "scales": ({"scales": [1, 2, 4]}, 1)}


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def make(form, quantizer="sliced", **fields):
    config = WassersteinVQConfig(
        image_size=64, quantizer=quantizer, num_codes=16, code_dim=4, **FORMS[form][0], **fields
    )
    torch.manual_seed(0)
    made = build_quantizer(config)
    made.reset_codebook()
    return made


def draw(seed=0):
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_codes_have_a_last_dim_where_there_are_several_codebooks(form):
    made = make(form)
    assert made.num_codebooks == FORMS[form][1]
    assert (made.num_codes, made.dim) == (16, 4)
    assert made.encode(draw()).shape == {"one": (2, 4, 4), "product": (2, 4, 4, 2), "scales": (2, 21)}[form]


@pytest.mark.parametrize("quantizer", ["sliced", "wasserstein", "mmd"])
def test_the_weight_of_the_alignment_is_scaled_in_every_form(form, quantizer):
    made, features = make(form, quantizer, alignment_weight=2.0), draw()

    def loss():
        torch.manual_seed(1)
        output = made(features)
        return output.loss, output.losses.get("alignment")

    whole, alignment = loss()
    made.scale_alignment(0.5)
    made.scale_alignment(0.25)  # a share of what is configured, not of what it was
    assert made.weights["alignment_weight"] == 0.5
    part, _ = loss()
    torch.testing.assert_close(whole - part, 1.5 * alignment)
    made.scale_alignment(0.0)
    assert loss()[1] is None


@pytest.mark.parametrize("quantizer", ["vanilla", "ema", "affine"])
def test_without_an_alignment_nothing_is_scaled(form, quantizer):
    made = make(form, quantizer)
    before = dict(made.weights)
    made.scale_alignment(0.5)
    assert made.weights == before


def test_a_frozen_quantizer_looks_for_nan_outside_of_training_alone(form):
    made, bad = make(form), draw()
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        made(bad)
    made.freeze()
    assert made(bad).codes.shape == made.encode(draw()).shape
    with torch.no_grad(), pytest.raises(ValueError, match="must be finite"):
        made(bad)
    made.freeze(False)
    with pytest.raises(ValueError, match="must be finite"):
        made(bad)


def test_the_scales_of_codes_end_on_all_of_them(form):
    made = make(form)
    codes = made.encode(draw())
    partial = made.lookup_scales(codes)
    assert len(partial) == (3 if form == "scales" else 1)
    assert torch.equal(partial[-1], made.lookup(codes))


def test_several_scales_alone_have_figures_of_their_own(form):
    made = make(form)
    measurements = made.measurements(torch.device("cpu"))
    for measurement in measurements:
        measurement.update(made.prepare(draw()), made.encode(draw()))
    figures = {name for measurement in measurements for name in measurement.compute()}
    assert figures == ({"alignment", "alignment_per_scale"} if form == "scales" else set())


def test_a_codebook_is_one_of_the_product():
    config = WassersteinVQConfig(image_size=64, num_codes=16, code_dim=4, num_groups=2)
    assert build_codebook(config).dim == 2
    assert build_quantizer(config).dim == 4
