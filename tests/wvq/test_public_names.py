"""The public names: what is loaded on first use is what editors and type checkers see."""

import ast
from pathlib import Path

import wvq


def test_editors_see_the_names_that_are_loaded_on_first_use():
    tree = ast.parse(Path(wvq.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == wvq._PUBLIC
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)  # a re-export
