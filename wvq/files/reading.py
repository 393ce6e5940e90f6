"""Reads JSON and YAML from files that anyone may have written: up to a size, with one kind of error for any fault.

Python's own parsers end in a RecursionError over deep nesting and fill memory from large files; PyYAML turns a few
lines of aliases of aliases into values without end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

MAX_JSON_BYTES = 32 * 2**20  # values take up to some 20 times as much in memory
MAX_YAML_BYTES = 2**20
_MAX_YAML_VALUES = 100_000  # aliases written out
_MAX_DIGITS = 20  # 64 bits, with a sign
_PIECE = 2**16


def read_text(file: str | Path, limit: int) -> str:
    """The text of a UTF-8 file, of which no more than ``limit`` bytes are read.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or no UTF-8.
    """
    content = bytearray()
    with Path(file).open("rb") as opened:
        # Piece by piece: one read of ``limit`` bytes takes the memory for all of them, however small the file is.
        while len(content) <= limit and (piece := opened.read(_PIECE)):
            content += piece
    if len(content) > limit:
        raise ValueError(f"larger than {limit / 2**20:g} MiB")
    return content.decode("utf-8")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, nested too deeply, or holds a whole number of more than 64 bits.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def read_yaml(file: str | Path) -> Any:
    """The value of a YAML file, of plain types only.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, is no YAML, is nested too deeply, or holds too much once its aliases are written
            out.
    """
    try:
        loader = yaml.SafeLoader(read_text(file, MAX_YAML_BYTES))
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values of a node; ``known`` has those of the nodes seen so far, 0 while a node is being counted."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias of what it is part of")
        return known[id(node)]
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in parts for part in pair]
    count = 1 + sum(_count(part, known) for part in parts)
    if count > _MAX_YAML_VALUES:
        raise ValueError(f"its aliases stand for more than {_MAX_YAML_VALUES:,} values")
    known[id(node)] = count
    return count
