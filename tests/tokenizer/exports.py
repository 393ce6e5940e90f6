"""What the tests of exports ask of the folders that an export leaves."""

from pathlib import Path

import torch

from wvq.data.codes import CodeDataset
from wvq.tokenizer.recipes import ExportRecipe


def assert_nothing_left(recipe: ExportRecipe) -> None:
    """Neither the cache nor the folder in which it is made is there."""
    out = Path(recipe.out)
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if out.name in path.name]


def assert_same_rows(one: Path | str, other: Path | str) -> None:
    """Two caches hold the same codes, labels and captions."""
    for split in ("train", "validation"):
        a, b = CodeDataset(one, split), CodeDataset(other, split)
        rows = range(len(a.labels))
        assert torch.equal(a.codes(rows), b.codes(rows))
        assert a.labels.tolist() == b.labels.tolist()
        assert [a.texts(i) for i in range(len(a))] == [b.texts(i) for i in range(len(b))]
