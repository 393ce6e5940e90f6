"""Small models of other projects: weights, inputs and outputs, made with those projects' own classes.

They are no part of this project. Their folder is that of the variable WVQ_PEERS, or ../shared/data/peers beside the
checkout; tests that compare with them are skipped where it is missing.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(os.environ.get("WVQ_PEERS") or Path(__file__).parents[2] / "shared" / "data" / "peers")


@dataclass(frozen=True)
class Peer:
    """One model.

    Attributes:
        weights: its state dict, as a checkpoint holds it.
        io: inputs and outputs by name, float32.
        facts: its sizes, and what made the outputs.
    """

    weights: dict[str, torch.Tensor]
    io: dict[str, torch.Tensor]
    facts: dict[str, Any]


def peer(name: str) -> Peer:
    """The model ``name``; the test that asks for it is skipped where its files are missing."""
    weights, io, facts = (FOLDER / f"{name}.{end}" for end in ("weights.safetensors", "io.safetensors", "json"))
    for file in (weights, io, facts):
        if not file.is_file():
            pytest.skip(f"{file} is missing; set WVQ_PEERS to the folder of the peers' models")
    return Peer(load_file(weights), load_file(io), json.loads(facts.read_text(encoding="utf-8")))
