"""The cells of the comparison of multi-scale trainings, and its documented table."""

from pathlib import Path

from benchmarks.multiscale import IMAGES, cells, table
from benchmarks.tokenizers import cell_recipe
from wvq.errors import DataError
from wvq.files.atomic import read_json
from wvq.tokenizer.configuration import WassersteinVQConfig

DOCS = Path(__file__).parents[2] / "docs"


def settings(cell):
    """What a cell trains with, as one dict; also checks it."""
    recipe = cell_recipe(cell, "pictures", Path("out"))
    recipe.check()
    WassersteinVQConfig(**recipe.model, image_size=recipe.data.image_size)
    return recipe.model | vars(recipe.train)


def test_a_cell_changes_one_setting_or_all():
    made = {name: settings(cell) for name, cell in cells(IMAGES).items()}

    def changed(name):
        defaults = made[f"{name.split('-')[0]}-defaults"]
        return {key for key, value in made[name].items() if value != defaults.get(key)}

    alone = [changed(name) for name in made if not name.endswith(("-defaults", "-all"))]
    assert [len(keys) for keys in alone] == [1] * 5
    assert changed("wasserstein-all") == set().union(*alone)
    assert changed("sliced-all") == changed("wasserstein-all") - {"window_size"}


def test_the_documented_table_is_that_of_the_results():
    file = DOCS / "results" / "multiscale.json"
    results = read_json(file, DataError, f"{file} is missing")["cells"]
    assert table(results) in (DOCS / "tokenizers.md").read_text(encoding="utf-8")
