"""The catalogue agrees with the presets and the readers, and its table shows all of it."""

from pathlib import Path

import pytest

from wvq.errors import ConfigError
from wvq.eval.presets import PRESETS
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.published.registry import GENERATORS
from wvq.pipelines.published.catalogue import CATALOGUE, FAMILIES, catalogue_text, find_published
from wvq.tokenizer.published.registry import TOKENIZERS

DOCS = Path(__file__).parents[3] / "docs" / "published.md"


def test_every_family_can_be_read():
    assert FAMILIES.keys() == TOKENIZERS.keys()
    assert {name for name, family in FAMILIES.items() if family.has_generators} == GENERATORS.keys()


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_model_has_what_an_import_needs(name):
    model = find_published(name)
    assert FAMILIES[model.family].has_generators or model.generator is None
    given = {option for option, value in vars(model.options).items() if value is not None}
    assert "image_size" in given <= set(FAMILIES[model.family].options)
    assert model.text_encoder is None or "text_encoder" in FAMILIES[model.family].options
    SamplingSettings(**model.sampling)


@pytest.mark.parametrize("name", [name for name, model in CATALOGUE.items() if model.preset])
def test_figures_and_sizes_are_those_of_the_preset(name):
    model = CATALOGUE[name]
    preset = PRESETS[model.preset]
    assert model.figure == f"FID {preset.published['fid']:.2f}"
    assert model.options.image_size == preset.image_size


def test_every_preset_of_an_importable_generator_has_its_model():
    presets = {name for name in PRESETS if name.startswith(("llamagen", "var"))}
    assert presets == {model.preset for model in CATALOGUE.values() if model.preset}


def test_names_are_no_families():
    assert not CATALOGUE.keys() & FAMILIES.keys()
    with pytest.raises(
        ConfigError, match=r'"llamagen-b-265" is no published model \(did you mean "llamagen-b-256"\?\)'
    ):
        find_published("llamagen-b-265")
    with pytest.raises(ConfigError, match='"llamagen" is a family of models'):
        find_published("llamagen")


def test_the_table_has_a_line_for_each_model():
    lines = catalogue_text().splitlines()
    for name, model in CATALOGUE.items():
        line = next(line for line in lines if line.split()[0:1] == [name])
        for part in (model.size, f"{model.options.image_size} px", model.figure, *map(str, model.files)):
            assert part in line


def documented(name: str) -> str:
    """The row of a model in the docs."""
    model = CATALOGUE[name]
    family = FAMILIES[model.family]
    cells = [f"`{name}`", family.project, family.licence or "none stated", model.size, f"{model.options.image_size} px"]
    cells += [model.figure, f"`{model.preset}`" if model.preset else "", ", ".join(map(str, model.files))]
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


@pytest.mark.skipif(not DOCS.is_file(), reason="the docs do not lie beside the tests")
def test_the_docs_have_the_same_table():
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert rows == [documented(name) for name in CATALOGUE]
